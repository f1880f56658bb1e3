"""Reading an engine file: what is whole opens, everything else is refused in one line and in bounded time."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_engine import (
    SMALL_ENTRIES,
    SMALL_WEIGHTS,
    small_layout,
    small_manifest,
    small_source,
    write_small_engine,
)
from trol_export.arena import stream_arena
from trol_runtime import zip_records
from trol_runtime.bundle import ARENA_BLOCK_BYTES, ARENA_ENTRY, COMMENT_BYTES, MANIFEST_ENTRY, Bundle
from trol_runtime.bundle_writer import BundleWriter
from trol_runtime.errors import EngineFileError, UsageError
from trol_runtime.manifest import Manifest
from trol_runtime.zip_records import Record

END_BYTES = 22 + COMMENT_BYTES


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_small_engine(tmp_path / "engine.plan")


@pytest.fixture
def whole(engine: Path) -> bytes:
    return engine.read_bytes()


def refusal(path: Path) -> str:
    """The message with which `path` is refused, which is one line that begins with the path."""
    with pytest.raises(EngineFileError) as caught:
        Bundle.open(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def refusal_of(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return refusal(path)


def flipped(data: bytes, offset: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def directory_offset(data: bytes) -> int:
    return struct.unpack_from("<I", data, len(data) - END_BYTES + 16)[0]


# What is whole.


def test_a_whole_file_opens_with_its_manifest_and_byte_ranges(engine: Path, whole: bytes) -> None:
    bundle = Bundle.open(engine)
    manifest = small_manifest()
    assert bundle.manifest == replace(manifest, sha256=bundle.manifest.sha256)
    assert bundle.file_bytes == len(whole)
    for name, data in SMALL_ENTRIES.items():
        entry = bundle.entries[name]
        assert whole[entry.offset : entry.offset + entry.size] == data
        assert bundle.read(name) == data


def test_the_weights_can_be_mapped_in_place(engine: Path) -> None:
    bundle = Bundle.open(engine)
    for name, array in SMALL_WEIGHTS.items():
        offset = bundle.arena_offset + bundle.manifest.tensors[name].offset
        mapped = np.memmap(engine, dtype=array.dtype, mode="r", offset=offset, shape=array.shape)
        np.testing.assert_array_equal(mapped, array)


def test_the_manifest_is_read_as_it_stands_in_the_file(engine: Path) -> None:
    bundle = Bundle.open(engine)
    with zipfile.ZipFile(engine) as archive:
        assert bundle.read(MANIFEST_ENTRY) == archive.read(MANIFEST_ENTRY)
        assert archive.comment.decode() == hashlib.sha256(bundle.read(MANIFEST_ENTRY)).hexdigest()


def test_the_arena_is_never_read_whole(engine: Path) -> None:
    with pytest.raises(ValueError, match="map it at arena_offset"):
        Bundle.open(engine).read(ARENA_ENTRY)


def test_an_engine_file_opens_under_another_name(engine: Path, tmp_path: Path) -> None:
    renamed = engine.rename(tmp_path / "renamed")
    Bundle.open(renamed).verify()


def test_entries_may_lie_after_an_older_directory(engine: Path, whole: bytes) -> None:
    """What adding a target writes: the old bytes, a new manifest, a new directory, which is the one that counts."""
    manifest = replace(Bundle.open(engine).manifest, parity={"verdict": "second"})
    data = manifest.to_bytes()
    with engine.open("rb") as file:
        old = zip_records.read_directory(file, len(whole), COMMENT_BYTES)
    added = Record(MANIFEST_ENTRY, 0, len(data), len(whole))
    records = [*(record for record in old.records if record.name != MANIFEST_ENTRY), added]
    tail = zip_records.local_header(added) + data
    comment = hashlib.sha256(data).hexdigest().encode()
    engine.write_bytes(whole + tail + zip_records.directory(records, len(whole) + len(tail), comment))
    assert Bundle.open(engine).manifest.parity == {"verdict": "second"}
    Bundle.open(engine).verify()


# What is not there or no engine file.


def test_a_missing_file_is_answered_with_the_command_that_makes_one(tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    assert refusal(path) == f"no such file; make one with: trol-export --size 1.8b --precision fp16 -o {path}"


def test_a_directory_is_no_engine_file(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "not a file; expected the output of trol-export"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "not a file; expected the output of trol-export"


def test_an_unreadable_file_is_named_with_the_reason(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(engine) == "cannot be read (Permission denied); expected an engine file"


@pytest.mark.parametrize("data", [b"", b"PK", b"a text file\n", b"\x93NUMPY", b"\0" * 4096])
def test_a_file_without_the_zip_magic_is_no_engine_file(tmp_path: Path, data: bytes) -> None:
    message = refusal_of(tmp_path / "other", data)
    assert message == "not an engine file (no zip header); expected the output of trol-export"


def test_some_other_zip_is_no_engine_file(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "damaged or cut short: the end record is missing; copy or export the engine again" in refusal(path)


# Truncation and flipped bits.


def test_truncation_at_every_byte_of_manifest_and_directory_is_refused(engine: Path, whole: bytes) -> None:
    start = Bundle.open(engine).entries[MANIFEST_ENTRY].offset
    for size in range(len(whole) - 1, start - 1, -1):
        os.truncate(engine, size)
        assert "copy or export the engine again" in refusal(engine)


def test_truncation_anywhere_else_is_refused(engine: Path, whole: bytes) -> None:
    for size in sorted({*range(4, 200), *range(200, len(whole), 977)}, reverse=True):
        os.truncate(engine, size)
        assert refusal(engine) == "damaged or cut short: the end record is missing; copy or export the engine again"


def test_anything_behind_the_end_is_passed_over_with_one_line_of_warning(engine: Path, whole: bytes) -> None:
    """It may be an addition that was interrupted: see test_bundle_appender."""
    for tail in (b"\0", b"x" * 100, whole[-END_BYTES:]):
        engine.write_bytes(whole + tail)
        with pytest.warns(UserWarning, match=rf"its last {len(tail)} bytes are an addition that is not .*") as caught:
            bundle = Bundle.open(engine)
        assert [str(warning.message).count("\n") for warning in caught] == [0]
        assert (bundle.file_bytes, bundle.end) == (len(whole) + len(tail), len(whole))
        bundle.verify()


def test_something_behind_the_end_does_not_save_a_file_that_is_damaged(engine: Path, whole: bytes) -> None:
    for at in (Bundle.open(engine).entries[MANIFEST_ENTRY].offset, directory_offset(whole), len(whole) - 1):
        assert refusal_of(engine, flipped(whole, at) + b"tail").startswith("damaged or cut short: ")


def test_a_file_of_a_hundred_thousand_records_is_refused_in_bounded_time(tmp_path: Path) -> None:
    """Looking for an older directory goes from record to record, and each end could be that of one."""
    entry = zip_records.local_header(Record("a", 0, 0, 0))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, 0, COMMENT_BYTES) + b"0" * COMMENT_BYTES
    for record in (entry, end):
        data = entry + record * 200_000 + b"tail"
        assert "the end record is missing" in refusal_of(tmp_path / "many.plan", data)


@pytest.mark.parametrize("size", [2**31, 2**32 - 2, 2**40, 2**64 - 1])
def test_an_entry_that_is_said_to_be_endless_hides_no_older_directory(engine: Path, whole: bytes, size: int) -> None:
    engine.write_bytes(whole + zip_records.local_header(Record("b", 0, size, len(whole))) + b"tail")
    with pytest.warns(UserWarning, match="are an addition that is not complete"):
        assert Bundle.open(engine).end == len(whole)


@pytest.mark.parametrize("name", [*SMALL_ENTRIES, "alignment.pad", MANIFEST_ENTRY])
def test_a_flipped_bit_in_any_small_entry_is_found_and_the_entry_named(engine: Path, whole: bytes, name: str) -> None:
    entry = Bundle.open(engine).entries[name]
    for offset in range(entry.offset, entry.offset + entry.size, max(1, entry.size // 50)):
        for bit in (0, 7):
            message = refusal_of(engine, flipped(whole, offset, bit))
            assert f"{name!r} is damaged" in message or f"{name} is damaged" in message
            assert message.endswith("copy or export the engine again")


def test_a_flipped_bit_in_any_record_of_the_zip_is_found(engine: Path, whole: bytes) -> None:
    bundle = Bundle.open(engine)
    headers = [range(entry.offset - 30 - len(name), entry.offset) for name, entry in bundle.entries.items()]
    for offset in (*range(directory_offset(whole), len(whole)), *(offset for header in headers for offset in header)):
        refusal_of(engine, flipped(whole, offset, bit=offset % 8))


def test_a_flipped_bit_in_the_weights_is_found_by_verify_and_the_tensor_named(engine: Path, whole: bytes) -> None:
    bundle = Bundle.open(engine)
    offset = bundle.arena_offset + bundle.manifest.tensors["head.weight"].offset + 5
    engine.write_bytes(flipped(whole, offset))
    with pytest.raises(EngineFileError) as caught:
        Bundle.open(engine).verify()
    assert str(caught.value) == (
        f"{engine}: 1 of 1 blocks of weights.safetensors damaged, "
        "first block 0 (its header, norm.weight, head.weight); copy or export the engine again"
    )


def test_a_flipped_bit_in_the_header_of_the_weights_is_found_by_verify(engine: Path, whole: bytes) -> None:
    engine.write_bytes(flipped(whole, Bundle.open(engine).entries[ARENA_ENTRY].offset + 20))
    with pytest.raises(EngineFileError, match=r"1 of 1 blocks of weights.safetensors damaged"):
        Bundle.open(engine).verify()


def test_a_wrong_length_of_the_header_of_the_weights_is_found_when_opening(engine: Path, whole: bytes) -> None:
    offset = Bundle.open(engine).entries[ARENA_ENTRY].offset
    for byte, bit in ((0, 0), (1, 7), (3, 5), (7, 7)):
        message = refusal_of(engine, flipped(whole, offset + byte, bit))
        assert message == "the header of weights.safetensors is damaged; copy or export the engine again"


def test_an_entry_that_changes_after_opening_is_not_handed_out(engine: Path, whole: bytes) -> None:
    bundle = Bundle.open(engine)
    engine.write_bytes(flipped(whole, bundle.entries["tokenizer.json"].offset))
    with pytest.raises(EngineFileError) as caught:
        bundle.read("tokenizer.json")
    assert str(caught.value) == (
        f"{engine}: entry 'tokenizer.json' is damaged, or changed since the file was opened; load it again, or copy or "
        "export it again"
    )


def test_a_damaged_plan_is_found_when_it_is_used_and_by_verify_and_keeps_nobody_from_other_plans(
    tmp_path: Path,
) -> None:
    engine = tmp_path / "engine.plan"
    with BundleWriter(engine) as writer:
        for name, data in {**SMALL_ENTRIES, "plans/a": b"plan", "plans/b": b"plan"}.items():
            writer.add(name, data)
        writer.add_arena(small_layout(), stream_arena(small_layout(), small_source))
        writer.finish(small_manifest())
    engine.write_bytes(flipped(engine.read_bytes(), Bundle.open(engine).entries["plans/b"].offset))
    bundle = Bundle.open(engine)
    assert bundle.read("plans/a") == b"plan"
    with pytest.raises(EngineFileError, match=r"entry 'plans/b' is damaged, or changed since"):
        bundle.read("plans/b")
    for use in (bundle.verify, lambda: bundle.extract("plans/b", tmp_path / "out")):
        with pytest.raises(EngineFileError, match=r"entry 'plans/b' is damaged \(SHA-256 differs\); copy or export"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"]


def test_the_same_file_is_known_again_and_another_under_its_name_is_not(engine: Path, whole: bytes) -> None:
    bundle = Bundle.open(engine)
    bundle.require_same_file()
    copy = engine.with_name("copy.plan")
    copy.write_bytes(whole)
    copy.replace(engine)
    with pytest.raises(EngineFileError, match=f"^{engine}: replaced while it was being loaded; load it again$"):
        bundle.require_same_file()


def test_a_file_that_was_written_over_is_not_the_same(engine: Path, whole: bytes) -> None:
    bundle = Bundle.open(engine)
    for data in (flipped(whole, bundle.arena_offset), flipped(whole, len(whole) - 1) + b"more", whole[:-1] + b"xyz"):
        engine.write_bytes(data)
        os.utime(engine, ns=(0, 0))
        with pytest.raises(EngineFileError, match="replaced while it was being loaded"):
            bundle.require_same_file()


def test_a_file_to_which_something_was_added_is_the_same(engine: Path) -> None:
    bundle = Bundle.open(engine)
    with engine.open("ab") as file:
        file.write(b"whatever")
    bundle.require_same_file()


def test_a_file_that_vanishes_after_opening_is_one_line(engine: Path) -> None:
    bundle = Bundle.open(engine)
    engine.unlink()
    with pytest.raises(EngineFileError, match="no such file"):
        bundle.verify()


# Hostile files: made of valid records that promise what cannot be.


def sealed(entries: list[tuple[Record, bytes]], directory_records: list[Record] | None = None) -> bytes:
    """An archive of these entries, whose last one is the manifest; the directory may say something else."""
    data = b"".join(zip_records.local_header(record) + content for record, content in entries)
    comment = hashlib.sha256(entries[-1][1]).hexdigest().encode()
    return data + zip_records.directory(directory_records or [record for record, _ in entries], len(data), comment)


def packed(*entries: tuple[str, bytes]) -> list[tuple[Record, bytes]]:
    offset = 0
    records = []
    for name, content in entries:
        record = Record(name, 0, len(content), offset)
        records.append((record, content))
        offset += len(zip_records.local_header(record)) + len(content)
    return records


def test_a_compressed_entry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deflated.plan"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("graphs/prefill.onnx", b"0" * 100_000)
        archive.comment = b"0" * COMMENT_BYTES
    message = "entry 'graphs/prefill.onnx' is compressed; engine files hold stored entries only"
    assert message in refusal(path)


def test_an_archive_without_manifest_is_no_engine_file(tmp_path: Path) -> None:
    message = refusal_of(tmp_path / "other", sealed(packed(("a", b"1"))))
    assert message == "not an engine file (no manifest.json); expected the output of trol-export"


def test_a_newer_format_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    message = refusal_of(tmp_path / "new.plan", sealed(packed((MANIFEST_ENTRY, b'{"format": 7, "new": []}'))))
    assert message == ("format 7 is newer than this version reads (up to 1); upgrade: pip install -U trol-export")


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    data = sealed(packed(("a", b"1"), ("a", b"2"), (MANIFEST_ENTRY, b"{}")))
    assert "entry 'a' appears twice" in refusal_of(tmp_path / "twice.plan", data)


@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "/etc/passwd",
        "a/../../b",
        "..",
        ".",
        "a//b",
        "a/",
        "C:\\x",
        "a\\b",
        "a b",
        "\u00e9",
        "a\n",
        "x" * 200,
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    coded = name.encode("latin-1")
    same_length = "Q" * len(coded)
    data = sealed(packed((same_length, b"1"), (MANIFEST_ENTRY, b"{}"))).replace(same_length.encode(), coded)
    assert "is not a plain relative path" in refusal_of(tmp_path / "tricky.plan", data)


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    first, second, manifest = packed(("a", b"1" * 100), ("b", b"2" * 100), (MANIFEST_ENTRY, b"{}"))
    inside = Record("c", 0, 10, first[0].header_offset + 31)
    hidden = zip_records.local_header(inside)
    content = hidden + b"1" * (100 - len(hidden))
    data = sealed([(first[0], content), second, manifest], [first[0], inside, second[0], manifest[0]])
    assert "entry 'c' overlaps another part of the file" in refusal_of(tmp_path / "overlap.plan", data)


def test_an_entry_that_reaches_into_the_directory_is_refused(tmp_path: Path) -> None:
    (record, content), manifest = packed(("a", b"1" * 8), (MANIFEST_ENTRY, b"{}"))
    manifest_record = replace(manifest[0], size=60)
    data = sealed([(record, content), (manifest_record, manifest[1])])
    assert "entry 'manifest.json' overlaps another part of the file" in refusal_of(tmp_path / "long.plan", data)


@pytest.mark.parametrize("header_offset", [2**31, 2**32 - 2, 2**40, 2**63, 2**64 - 1])
def test_an_entry_beyond_the_file_is_refused(tmp_path: Path, header_offset: int) -> None:
    entries = packed(("a", b"1"), (MANIFEST_ENTRY, b"{}"))
    records = [replace(entries[0][0], header_offset=header_offset), entries[1][0]]
    assert "entry 'a' overlaps another part of the file" in refusal_of(tmp_path / "far.plan", sealed(entries, records))


@pytest.mark.parametrize("size", [2**31, 2**32 - 2, 2**40, 2**64 - 1])
def test_an_entry_larger_than_the_file_is_refused(tmp_path: Path, size: int) -> None:
    entries = packed(("a", b"1"), (MANIFEST_ENTRY, b"{}"))
    entries[0] = (replace(entries[0][0], size=size), b"1")
    entries[1] = (replace(entries[1][0], header_offset=len(zip_records.local_header(entries[0][0])) + 1), b"{}")
    assert "entry 'a' overlaps another part of the file" in refusal_of(tmp_path / "huge.plan", sealed(entries))


@pytest.mark.parametrize("count", [7, 60_000, 0xFFFE])
def test_a_huge_count_in_the_end_record_is_refused(engine: Path, whole: bytes, count: int) -> None:
    end = len(whole) - END_BYTES
    data = whole[: end + 8] + struct.pack("<2H", count, count) + whole[end + 12 :]
    assert refusal_of(engine, data).startswith("damaged or cut short: ")


@pytest.mark.parametrize(
    ("field", "value"), [(0, 2**64 - 1), (0, 2**40), (1, 2**64 - 1), (1, 2**40), (2, 2**64 - 1), (2, 2**63)]
)
def test_a_huge_number_in_the_zip64_end_record_is_refused(engine: Path, whole: bytes, field: int, value: int) -> None:
    """Fields: entry count, directory size, directory offset."""
    end = len(whole) - END_BYTES
    numbers = [5, end - directory_offset(whole), directory_offset(whole)]
    numbers[field] = value
    zip64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, numbers[0], *numbers)
    zip64 += struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    record = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, COMMENT_BYTES)
    data = whole[:end] + zip64 + record + whole[-COMMENT_BYTES:]
    assert refusal_of(engine, data).startswith("damaged or cut short: ")


def test_a_sparse_manifest_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    size = 8 << 30
    record = Record(MANIFEST_ENTRY, 0, size, 0)
    header = zip_records.local_header(record)
    path = tmp_path / "sparse.plan"
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + size)
        file.write(zip_records.directory([record], len(header) + size, b"0" * COMMENT_BYTES))
    assert refusal(path) == "manifest.json has 8,589,934,592 bytes, at most 67,108,864 are possible"


# Manifests that verify and yet do not describe the file.


def resealed(engine: Path, change: Callable[[Manifest], Manifest]) -> bytes:
    """The engine file with a manifest changed by `change`, hashes and records in order."""
    whole = engine.read_bytes()
    bundle = Bundle.open(engine)
    with engine.open("rb") as file:
        old = zip_records.read_directory(file, len(whole), COMMENT_BYTES)
    data = change(bundle.manifest).to_bytes()
    kept = [record for record in old.records if record.name != MANIFEST_ENTRY]
    last = next(record for record in old.records if record.name == MANIFEST_ENTRY)
    record = replace(last, size=len(data), crc=0)
    body = whole[: last.header_offset] + zip_records.local_header(record) + data
    return body + zip_records.directory([*kept, record], len(body), hashlib.sha256(data).hexdigest().encode())


def with_tensor(manifest: Manifest, **changes: Any) -> Manifest:
    tensor = replace(manifest.tensors["head.weight"], **changes)
    return replace(manifest, tensors={**manifest.tensors, "head.weight": tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: with_tensor(m, offset=10**12), "tensor 'head.weight' ends outside weights.safetensors"),
        (lambda m: with_tensor(m, offset=-256), "tensor 'head.weight' ends outside weights.safetensors"),
        (lambda m: with_tensor(m, shape=(2**40, 2**40)), "tensor 'head.weight' ends outside weights.safetensors"),
        (lambda m: with_tensor(m, shape=(-1, -1)), "tensor 'head.weight' has dtype 'F32', shape (-1, -1)"),
        (lambda m: with_tensor(m, stored="Q9"), "tensor 'head.weight' has dtype 'Q9'"),
        (
            lambda m: replace(m, graphs={"prefill": replace(m.graphs["prefill"], entry="graphs/lost.onnx")}),
            "entry 'graphs/lost.onnx' is missing",
        ),
        (lambda m: replace(m, plans=(replace(m.plans[0], entries=("plans/x",)),)), "entry 'plans/x' is missing"),
        (
            lambda m: replace(m, sha256=replace(m.sha256, entries={**m.sha256.entries, "more": "00"})),
            "entry 'more' is missing",
        ),
        (
            lambda m: replace(m, sha256=replace(m.sha256, entries={}), graphs={}, plans=()),
            "entry 'alignment.pad' is not in the manifest",
        ),
        (
            lambda m: replace(m, sha256=replace(m.sha256, arena_blocks=())),
            "weights.safetensors has 1 blocks, the manifest describes 0",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_its_file_is_refused(
    engine: Path, change: Callable[[Manifest], Manifest], message: str
) -> None:
    found = refusal_of(engine, resealed(engine, change))
    assert found.startswith(message)
    assert "export the engine again" in found


# Blocks, extraction, other readers.


def test_verify_names_the_block_and_the_tensors_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 KiB stand in for those of 16 MiB."""
    for module in ("bundle", "bundle_writer"):
        monkeypatch.setattr(f"trol_runtime.{module}.ARENA_BLOCK_BYTES", 4096)
    engine = write_small_engine(tmp_path / "engine.plan")
    bundle = Bundle.open(engine)
    assert len(bundle.manifest.sha256.arena_blocks) == -(-bundle.entries[ARENA_ENTRY].size // 4096) == 20
    bundle.verify()
    data = engine.read_bytes()
    engine.write_bytes(flipped(flipped(data, bundle.arena_offset + 4096), bundle.arena_offset + 3 * 4096))
    with pytest.raises(EngineFileError) as caught:
        Bundle.open(engine).verify()
    assert "2 of 20 blocks of weights.safetensors damaged, first block 2 (head.weight); copy or export" in str(
        caught.value
    )


def test_blocks_are_those_of_the_file_format() -> None:
    assert ARENA_BLOCK_BYTES == 16 * 2**20


@pytest.mark.parametrize("name", [*SMALL_ENTRIES, MANIFEST_ENTRY, ARENA_ENTRY])
def test_an_extracted_entry_has_the_bytes_other_zip_readers_see(engine: Path, tmp_path: Path, name: str) -> None:
    Bundle.open(engine).extract(name, tmp_path / "out")
    with zipfile.ZipFile(engine) as archive:
        assert (tmp_path / "out").read_bytes() == archive.read(name)


@pytest.mark.parametrize("name", ["graphs/other.onnx", "../engine.plan", "/etc/passwd", ""])
def test_an_unknown_entry_is_answered_with_those_there_are(engine: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        Bundle.open(engine).extract(name, tmp_path / "out")
    assert f"no entry {name!r}; it holds graphs/prefill.onnx, graphs/decode.onnx, tokenizer.json" in str(caught.value)
    assert list(tmp_path.iterdir()) == [engine]


def test_extraction_never_replaces_a_file(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out: already exists; choose another name with -o"):
        Bundle.open(engine).extract("tokenizer.json", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_extraction_cut_short_leaves_nothing(engine: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(engine)
    os.truncate(engine, bundle.arena_offset)
    with pytest.raises(EngineFileError, match=r"entry 'weights.safetensors' is cut short"):
        bundle.extract(ARENA_ENTRY, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [engine]


def test_python_and_unzip_find_the_archive_sound(engine: Path) -> None:
    with zipfile.ZipFile(engine) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    if shutil.which("unzip"):
        listing = subprocess.run(["unzip", "-t", engine], capture_output=True, text=True, check=True).stdout
        assert "No errors detected" in listing


def test_an_engine_opened_by_a_relative_path_is_read_wherever_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_engine(tmp_path / "engine.plan")
    monkeypatch.chdir(tmp_path)
    bundle = Bundle.open("engine.plan")
    monkeypatch.chdir("/")
    assert bundle.path == tmp_path / "engine.plan"
    assert bundle.read("tokenizer.json") == SMALL_ENTRIES["tokenizer.json"]
