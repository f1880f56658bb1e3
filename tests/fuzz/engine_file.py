"""An engine file taken apart and put together again, signed anew; and what it answers.

Damage to an engine file is found by its hashes. To reach the code behind them, a changed manifest or entry is written
with hashes that fit, as anyone can who writes a file to do harm.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from trol_runtime import zip_records
from trol_runtime.bundle import COMMENT_BYTES, MANIFEST_ENTRY, Bundle
from trol_runtime.engine import TroL
from trol_runtime.inspect_command_line import describe
from trol_runtime.zip_records import Record

ENGINE = "engine.plan"


@dataclass(frozen=True)
class EngineParts:
    """The bytes of an engine file and where everything lies in them."""

    data: bytes
    records: Sequence[Record]
    directory_offset: int

    @classmethod
    def of(cls, data: bytes) -> EngineParts:
        directory = zip_records.read_directory(BytesIO(data), len(data), COMMENT_BYTES)
        return cls(data, directory.records, directory.offset)

    def content_range(self, record: Record) -> range:
        start = zip_records.data_offset(BytesIO(self.data), record)
        return range(start, start + record.size)

    def header_range(self, record: Record) -> range:
        return range(record.header_offset, self.content_range(record).start)

    def content(self, name: str) -> bytes:
        found = self.content_range(self.record(name))
        return self.data[found.start : found.stop]

    def record(self, name: str) -> Record:
        return next(record for record in self.records if record.name == name)

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.content(MANIFEST_ENTRY))

    def signed(self, manifest: bytes) -> bytes:
        """The file with another manifest, whose SHA-256 is in the comment."""
        return self._closed(self.data[: self.record(MANIFEST_ENTRY).header_offset], self.records, manifest)

    def with_entries(self, entries: Mapping[str, bytes]) -> bytes:
        """The file with other contents of some small entries, their SHA-256 in the manifest.

        They lie behind the arena, which so keeps its place; what they replace is still there, named by nothing.
        """
        manifest = self.manifest
        data = self.data[: self.record(MANIFEST_ENTRY).header_offset]
        records = [record for record in self.records if record.name not in entries]
        for name, content in entries.items():
            records.append(Record(name, zlib.crc32(content), len(content), len(data)))
            data += zip_records.local_header(records[-1]) + content
            manifest["sha256"]["entries"][name] = hashlib.sha256(content).hexdigest()
        return self._closed(data, records, json.dumps(manifest).encode())

    def _closed(self, data: bytes, records: Sequence[Record], manifest: bytes) -> bytes:
        record = Record(MANIFEST_ENTRY, zlib.crc32(manifest), len(manifest), len(data))
        data += zip_records.local_header(record) + manifest
        others = [other for other in records if other.name != MANIFEST_ENTRY]
        comment = hashlib.sha256(manifest).hexdigest().encode()
        return data + zip_records.directory([*others, record], len(data), comment)


def contents(path: Path) -> dict[str, Any]:
    """Everything that an engine file vouches for, after reading it in every way short of running it."""
    bundle = Bundle.open(path)
    bundle.verify()
    describe(bundle)
    small = {name: bundle.read(name) for name in bundle.manifest.sha256.entries if name != "alignment.pad"}
    return {"manifest": replace(bundle.manifest), **small}


def answer(path: Path) -> str:
    """What the engine says about a picture: all its graphs, the tokenizer and the prompt have a part in it."""
    model = TroL.load(path, threads=1)
    return model.generate("What is it?", images=[Image.new("RGB", (40, 30), "red")], max_new_tokens=4)
