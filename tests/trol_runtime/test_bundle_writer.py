"""Writing an engine file: aligned, reproducible, checked before it gets its name; a failure leaves nothing behind."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_engine import SMALL_ENTRIES, SMALL_WEIGHTS, small_layout, small_manifest, small_source, write_small_engine
from trol_export.arena import stream_arena
from trol_runtime import atomic_file, bundle_writer, zip_records
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.bundle_writer import BundleWriter
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.manifest import Hashes


def add_everything(writer: BundleWriter) -> None:
    layout = small_layout()
    for name, data in SMALL_ENTRIES.items():
        writer.add(name, data)
    writer.add_arena(layout, stream_arena(layout, small_source))


def test_data_byte_0_of_the_weights_is_aligned_to_64_kib_and_tensors_to_256(tmp_path: Path) -> None:
    bundle = Bundle.open(write_small_engine(tmp_path / "engine.plan"))
    assert bundle.arena_offset % 65536 == 0
    assert all(tensor.offset % 256 == 0 for tensor in bundle.manifest.tensors.values())


@settings(deadline=None, max_examples=30)  # each writes and syncs a file
@given(before=st.binary(max_size=70_000))
def test_alignment_does_not_depend_on_what_comes_before(
    tmp_path_factory: pytest.TempPathFactory, before: bytes
) -> None:
    path = tmp_path_factory.mktemp("aligned") / "engine.plan"
    layout = small_layout()
    with BundleWriter(path) as writer:
        writer.add("before", before)
        for name, data in SMALL_ENTRIES.items():
            writer.add(name, data)
        writer.add_arena(layout, stream_arena(layout, small_source))
        writer.finish(small_manifest())
    assert Bundle.open(path).arena_offset % 65536 == 0


def test_the_extracted_weights_are_the_tensors_that_went_in(tmp_path: Path) -> None:
    bundle = Bundle.open(write_small_engine(tmp_path / "engine.plan"))
    bundle.extract(ARENA_ENTRY, tmp_path / "weights.safetensors")
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(tmp_path / "weights.safetensors", framework="np") as file:
        for name, array in SMALL_WEIGHTS.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_small_engine(tmp_path / "first").read_bytes()
    assert write_small_engine(tmp_path / "second").read_bytes() == first


def test_hashes_are_filled_in_whatever_the_manifest_says(tmp_path: Path) -> None:
    wrong = replace(small_manifest(), sha256=Hashes({"no": "such"}, ("block",)))
    bundle = Bundle.open(write_small_engine(tmp_path / "engine.plan", wrong))
    assert set(bundle.manifest.sha256.entries) == {*SMALL_ENTRIES, "alignment.pad"}
    bundle.verify()


def test_a_chunk_may_be_reused_once_the_next_is_asked_for(tmp_path: Path) -> None:
    whole = b"".join(stream_arena(small_layout(), small_source))
    buffer = bytearray(1000)

    def reused_chunks() -> Iterator[memoryview]:
        for start in range(0, len(whole), len(buffer)):
            chunk = whole[start : start + len(buffer)]
            buffer[: len(chunk)] = chunk
            yield memoryview(buffer)[: len(chunk)]
            buffer[:] = b"\xee" * len(buffer)

    with BundleWriter(tmp_path / "engine.plan") as writer:
        for name, data in SMALL_ENTRIES.items():
            writer.add(name, data)
        writer.add_arena(small_layout(), reused_chunks())
        writer.finish(small_manifest())
    Bundle.open(tmp_path / "engine.plan").verify()
    assert (tmp_path / "engine.plan").read_bytes() == write_small_engine(tmp_path / "again").read_bytes()


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 20_000), max_size=8), block_bytes=st.sampled_from([1, 7, 4096, 16 << 20]))
def test_block_hashes_do_not_depend_on_the_size_of_chunks(cuts: list[int], block_bytes: int) -> None:
    data = memoryview(np.arange(5000, dtype=np.uint32).tobytes())
    cuts = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_writer, "ARENA_BLOCK_BYTES", max(block_bytes, len(data) // 50))
        whole, pieces = bundle_writer._BlockHashes(), bundle_writer._BlockHashes()
        whole.update(data)
        for start, end in itertools.pairwise(cuts):
            pieces.update(data[start:end])
        assert pieces.hexdigests() == whole.hexdigests()


# The provisional file, which is checked before the engine gets its name.


def test_the_provisional_file_is_a_whole_engine_under_another_name(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "engine.plan") as writer:
        add_everything(writer)
        provisional = writer.write_provisional(replace(small_manifest(), parity={}))
        bundle = Bundle.open(provisional)
        bundle.verify()
        assert bundle.manifest.parity == {}
        assert not (tmp_path / "engine.plan").exists()
        writer.finish(replace(small_manifest(), parity={"verdict": "pass"}))
    assert Bundle.open(tmp_path / "engine.plan").manifest.parity == {"verdict": "pass"}
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"]


def test_a_provisional_manifest_leaves_no_trace_in_the_final_bytes(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "checked") as writer:
        add_everything(writer)
        writer.write_provisional(replace(small_manifest(), parity={"long": "x" * 5000}))
        writer.write_provisional(replace(small_manifest(), parity={}))
        writer.finish(small_manifest())
    assert (tmp_path / "checked").read_bytes() == write_small_engine(tmp_path / "straight").read_bytes()


def test_a_failed_check_of_the_provisional_file_leaves_nothing(tmp_path: Path) -> None:
    def export() -> None:
        with BundleWriter(tmp_path / "engine.plan") as writer:
            add_everything(writer)
            writer.write_provisional(small_manifest())
            raise TrolError("parity check failed")

    with pytest.raises(TrolError, match="parity"):
        export()
    assert list(tmp_path.iterdir()) == []


# zip64, without writing gigabytes: 66,000 bytes, between the largest padding and the weights, stand in for 4 GiB.


def test_large_files_use_zip64_and_other_readers_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_records, "ZIP64_LIMIT", 66_000)
    engine = write_small_engine(tmp_path / "engine.plan")
    assert b"PK\x06\x06" in engine.read_bytes()
    Bundle.open(engine).verify()
    with zipfile.ZipFile(engine) as archive:
        assert archive.testzip() is None
        assert archive.read("tokenizer.json") == SMALL_ENTRIES["tokenizer.json"]
        assert archive.getinfo(ARENA_ENTRY).file_size == Bundle.open(engine).entries[ARENA_ENTRY].size


def test_a_file_written_with_zip64_is_refused_when_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_records, "ZIP64_LIMIT", 66_000)
    engine = write_small_engine(tmp_path / "engine.plan")
    whole = engine.read_bytes()
    start = struct.unpack_from("<Q", whole, whole.rindex(b"PK\x06\x06") + 48)[0]
    for size in range(len(whole) - 1, start, -1):
        os.truncate(engine, size)
        with pytest.raises(TrolError, match="damaged or cut short"):
            Bundle.open(engine)


# Refusals before any work.


def test_an_existing_engine_is_refused_before_any_work_unless_overwrite_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    path.write_text("mine")
    with pytest.raises(UsageError) as caught:
        BundleWriter(path)
    assert str(caught.value) == (f"{path}: already exists; choose another name with -o")
    with BundleWriter(path, overwrite=True) as writer:
        add_everything(writer)
        assert path.read_text() == "mine"
        writer.finish(small_manifest())
    Bundle.open(path).verify()


def test_too_little_disk_for_the_whole_engine_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(TrolError, match=r"needs 1,000,000,000,000,000 bytes, its disk has [\d,]+ free"):
        BundleWriter(tmp_path / "engine.plan").require_free_bytes(10**15)


def test_too_little_disk_for_the_weights_is_found_before_they_are_read(tmp_path: Path) -> None:
    layout = SimpleNamespace(header=small_layout().header, data_bytes=10**15)

    def never_read() -> Iterator[bytes]:
        pytest.fail("a chunk was asked for")
        yield b""

    with pytest.raises(TrolError, match="its disk has"), BundleWriter(tmp_path / "engine.plan") as writer:
        writer.add_arena(layout, never_read())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../escape", "/absolute", "a b", "", "graphs/prefill.onnx"])
def test_an_entry_name_that_is_taken_or_not_plain_is_refused(tmp_path: Path, name: str) -> None:
    with BundleWriter(tmp_path / "engine.plan") as writer:
        writer.add("graphs/prefill.onnx", b"first")
        with pytest.raises(ValueError, match="is taken or not a plain relative path"):
            writer.add(name, b"second")


@pytest.mark.parametrize("difference", [-1, 1])
def test_weights_of_another_length_than_their_layout_never_become_an_engine(tmp_path: Path, difference: int) -> None:
    layout = small_layout()
    data = b"".join(stream_arena(layout, small_source)) + b"x"
    with pytest.raises(ValueError, match="the layout promises"), BundleWriter(tmp_path / "engine.plan") as writer:
        writer.add_arena(layout, [data[: layout.data_bytes + difference]])
    assert list(tmp_path.iterdir()) == []


# Failures in mid-write.


@pytest.mark.parametrize("stop_after", [0, 1, 2])
@pytest.mark.parametrize("existing", [None, b"old engine"])
def test_ctrl_c_while_the_weights_stream_leaves_the_final_name_as_it_was(
    tmp_path: Path, stop_after: int, existing: bytes | None
) -> None:
    path = tmp_path / "engine.plan"
    if existing is not None:
        path.write_bytes(existing)

    def interrupted() -> Iterator[bytes | memoryview]:
        for count, chunk in enumerate(stream_arena(small_layout(), small_source)):
            if count == stop_after:
                raise KeyboardInterrupt
            yield chunk

    with pytest.raises(KeyboardInterrupt), BundleWriter(path, overwrite=True) as writer:
        writer.add_arena(small_layout(), interrupted())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if existing is None else [existing])


def test_an_interrupt_as_the_file_is_created_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the two moments when the file is there and no `with` block would remove it."""

    def create_and_interrupt(*arguments: Any) -> FileIO:
        FileIO(*arguments).close()
        raise KeyboardInterrupt

    def enter_and_interrupt(file: AtomicFile) -> AtomicFile:
        entered(file)
        raise KeyboardInterrupt

    entered = AtomicFile.__enter__
    for target, replacement in (("FileIO", create_and_interrupt), ("AtomicFile.__enter__", enter_and_interrupt)):
        with monkeypatch.context() as patch:
            patch.setattr(f"trol_runtime.atomic_file.{target}", replacement)
            with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / "engine.plan"):
                pass
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_real_interrupt_ends_the_command_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    program = f"""
import itertools, types
from trol_runtime.bundle_writer import BundleWriter
from trol_runtime.command import run_command
def main(argv: list[str]) -> None:
    layout = types.SimpleNamespace(header=bytes(4096), data_bytes=10**9)
    with BundleWriter({str(tmp_path / "engine.plan")!r}) as writer:
        print("started", flush=True)
        writer.add_arena(layout, itertools.repeat(bytes(1000), 10**6))
    return 0
raise SystemExit(run_command("writer", main))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "writer: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written_before", [0, 5000, 70_000])
def test_a_full_disk_in_mid_write_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_before: int
) -> None:
    class AlmostFull(FileIO):
        def write(self, data: Any) -> int:
            room = written_before - self.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(memoryview(data)[:room])

    monkeypatch.setattr(atomic_file, "FileIO", AlmostFull)
    with pytest.raises(TrolError) as caught, BundleWriter(tmp_path / "engine.plan") as writer:
        add_everything(writer)
    assert f"engine.plan: disk full after {written_before:,} bytes" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_when_the_file_is_synced_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with BundleWriter(tmp_path / "engine.plan") as writer:
        add_everything(writer)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(TrolError, match=r"cannot be written \(Input/output error\)"):
            writer.finish(small_manifest())
    assert list(tmp_path.iterdir()) == []


def test_the_path_of_a_provisional_file_lies_beside_the_final_one(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "engine.plan") as writer:
        add_everything(writer)
        provisional = writer.write_provisional(small_manifest())
    assert isinstance(provisional, Path)
    assert provisional.parent == tmp_path
    assert provisional.name.startswith("engine.plan.")
