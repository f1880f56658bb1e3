"""Entries of an engine file as they are written one behind the other: their zip records and hashes, the closing part.

What writing a new file (`bundle_writer`) and adding to one (`bundle_appender`) share.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trol_runtime import zip_records
from trol_runtime.bundle import ARENA_ENTRY, MANIFEST_ENTRY
from trol_runtime.manifest import Hashes, Manifest
from trol_runtime.output_file import OutputFile
from trol_runtime.zip_records import Record


class EntryWriter:
    """Writes entries to `file` from where it stands.

    kept, kept_sha256: entries that lie in the file already and the hashes of the small ones; a new entry of the same
    name takes the place of the old one, whose bytes belong to no entry from then on
    """

    def __init__(
        self, file: OutputFile, kept: Sequence[Record] = (), kept_sha256: Mapping[str, str] | None = None
    ) -> None:
        self._file = file
        self._records = {record.name: record for record in kept if record.name != MANIFEST_ENTRY}
        self._sha256 = dict(kept_sha256 or {})
        # Every file has one manifest, written last, and weights that stay as they are.
        self._taken = {MANIFEST_ENTRY} | {ARENA_ENTRY} & self._records.keys()

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Write a small entry."""
        self.begin(Record(name, zlib.crc32(data), memoryview(data).nbytes, self._file.tell()))
        self._file.write(data)
        self._sha256[name] = hashlib.sha256(data).hexdigest()

    def begin(self, record: Record) -> None:
        """Write the header of an entry whose data comes next; ValueError for a name that is taken or not plain."""
        if not zip_records.is_plain_name(record.name) or record.name in self._taken:
            raise ValueError(f"entry name {record.name!r} is taken or not a plain relative path")
        self._taken.add(record.name)
        self._records[record.name] = record
        self._file.write(zip_records.local_header(record))

    def amend_crc(self, name: str, crc: int) -> None:
        """Give an entry, begun before its data was seen, its CRC."""
        self._records[name] = replace(self._records[name], crc=crc)
        self._file.write_at(self._records[name].header_offset, zip_records.local_header(self._records[name]))

    def write_manifest(self, manifest: Manifest, arena_blocks: tuple[str, ...]) -> bytes:
        """Write `manifest`, its hashes filled in, behind the entries and return the directory that ends the file."""
        data = replace(manifest, sha256=Hashes(dict(self._sha256), arena_blocks)).to_bytes()
        record = Record(MANIFEST_ENTRY, zlib.crc32(data), len(data), self._file.tell())
        self._file.write(zip_records.local_header(record))
        self._file.write(data)
        comment = hashlib.sha256(data).hexdigest().encode()
        return zip_records.directory([*self._records.values(), record], self._file.tell(), comment)
