"""Entries one behind the other: their records and hashes, new ones in place of old ones of the same name."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path

import pytest

from small_engine import small_manifest
from trol_runtime import zip_records
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.bundle import ARENA_ENTRY, COMMENT_BYTES, MANIFEST_ENTRY
from trol_runtime.entry_writer import EntryWriter
from trol_runtime.manifest import Manifest
from trol_runtime.zip_records import Directory, Record


def written(path: Path, writer_of: dict[str, bytes], *, kept: tuple[Record, ...] = ()) -> tuple[Directory, Manifest]:
    """The directory and manifest of a file of these entries, behind 100 bytes in which the kept ones would lie."""
    with AtomicFile(path) as file:
        file.write(bytes(100))
        writer = EntryWriter(file, kept, {record.name: "00" for record in kept if record.name != ARENA_ENTRY})
        for name, data in writer_of.items():
            writer.add(name, data)
        file.write(writer.write_manifest(small_manifest(), ("block",)))
        file.commit()
    data = path.read_bytes()
    directory = zip_records.read_directory(io.BytesIO(data), len(data), COMMENT_BYTES)
    manifest = next(record for record in directory.records if record.name == MANIFEST_ENTRY)
    start = zip_records.data_offset(io.BytesIO(data), manifest)
    return directory, Manifest.from_bytes(data[start : start + manifest.size])


def test_entries_begin_where_the_file_stands_and_the_manifest_has_their_hashes(tmp_path: Path) -> None:
    directory, manifest = written(tmp_path / "file", {"a": b"first", "b": b"second"})
    assert [record.name for record in directory.records] == ["a", "b", MANIFEST_ENTRY]
    assert directory.records[0] == Record("a", zlib.crc32(b"first"), 5, 100)
    hashes = {"a": hashlib.sha256(b"first").hexdigest(), "b": hashlib.sha256(b"second").hexdigest()}
    assert (manifest.sha256.entries, manifest.sha256.arena_blocks) == (hashes, ("block",))


def test_kept_entries_stay_where_they_are_but_for_the_manifest(tmp_path: Path) -> None:
    kept = (Record("old", 1, 2, 3), Record(MANIFEST_ENTRY, 4, 5, 6))
    directory, manifest = written(tmp_path / "file", {"new": b"data"}, kept=kept)
    assert directory.records[0] == kept[0]
    assert [record.name for record in directory.records] == ["old", "new", MANIFEST_ENTRY]
    assert manifest.sha256.entries["old"] == "00"


def test_a_new_entry_supersedes_a_kept_one_of_its_name(tmp_path: Path) -> None:
    directory, manifest = written(tmp_path / "file", {"a": b"new"}, kept=(Record("a", 1, 2, 3),))
    assert directory.records[0] == Record("a", zlib.crc32(b"new"), 3, 100)
    assert manifest.sha256.entries == {"a": hashlib.sha256(b"new").hexdigest()}


def test_memory_of_any_kind_is_written(tmp_path: Path) -> None:
    directory, _ = written(tmp_path / "file", {"a": memoryview(b"abcd").cast("I")})  # type: ignore[dict-item]
    assert directory.records[0].size == 4


@pytest.mark.parametrize("name", ["a", MANIFEST_ENTRY, ARENA_ENTRY, "../escape", "a b", ""])
def test_a_name_that_is_taken_or_leads_elsewhere_is_a_mistake(tmp_path: Path, name: str) -> None:
    with AtomicFile(tmp_path / "file") as file:
        writer = EntryWriter(file, (Record(ARENA_ENTRY, 1, 2, 3),))
        writer.add("a", b"first")
        with pytest.raises(ValueError, match="is taken or not a plain relative path"):
            writer.add(name, b"second")
