"""Adding to an engine file: old bytes stay, the new directory counts once it is whole, readers are not disturbed."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from small_engine import SMALL_ENTRIES, write_small_engine
from trol_runtime import zip_records
from trol_runtime.bundle import ARENA_ENTRY, MANIFEST_ENTRY, Bundle
from trol_runtime.bundle_appender import BundleAppender
from trol_runtime.errors import EngineFileError, TrolError
from trol_runtime.file_tail import FileTail

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file locks")

PLAN = "plans/tensorrt/key/decode.plan"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_small_engine(tmp_path / "engine.plan")


def add(engine: Path, verdict: str, **entries: bytes) -> None:
    """Add the entries, a plan by default, and a manifest that can be told from others by its verdict."""
    with BundleAppender(engine) as appender:
        for name, data in (entries or {PLAN: f"plan of {verdict}".encode()}).items():
            appender.add(name, data)
        appender.finish(replace(appender.manifest, parity={"verdict": verdict}))


def opened(engine: Path) -> tuple[str, list[str]]:
    """The verdict in the manifest, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verdict = Bundle.open(engine).manifest.parity["verdict"]
    return verdict, [str(warning.message) for warning in caught]


def test_what_was_added_is_there_and_everything_else_still_is(engine: Path) -> None:
    before = Bundle.open(engine)
    add(engine, "first")
    bundle = Bundle.open(engine)
    assert bundle.read(PLAN) == b"plan of first"
    assert {name: bundle.read(name) for name in SMALL_ENTRIES} == SMALL_ENTRIES
    assert bundle.manifest == replace(before.manifest, parity={"verdict": "first"}, sha256=bundle.manifest.sha256)
    assert bundle.entries[ARENA_ENTRY] == before.entries[ARENA_ENTRY]
    bundle.verify()


def test_no_earlier_byte_changes(engine: Path) -> None:
    before = engine.read_bytes()
    add(engine, "first")
    once = engine.read_bytes()
    add(engine, "second")
    assert once.startswith(before)
    assert engine.read_bytes().startswith(once)


def test_a_new_entry_supersedes_the_old_one_of_its_name(engine: Path) -> None:
    add(engine, "first")
    add(engine, "second")
    bundle = Bundle.open(engine)
    assert bundle.read(PLAN) == b"plan of second"
    assert b"plan of first" in engine.read_bytes()
    assert [record.name for record in bundle.records].count(PLAN) == 1


@pytest.mark.parametrize("name", [ARENA_ENTRY, MANIFEST_ENTRY])
def test_weights_and_manifest_cannot_be_added(engine: Path, name: str) -> None:
    with BundleAppender(engine) as appender, pytest.raises(ValueError, match="is taken"):
        appender.add(name, b"other")
    assert Bundle.open(engine).manifest.parity["verdict"] == "pass"


def test_other_zip_readers_list_the_last_directory(engine: Path, tmp_path: Path) -> None:
    add(engine, "first")
    add(engine, "second")
    names = [*SMALL_ENTRIES, "alignment.pad", ARENA_ENTRY, PLAN, MANIFEST_ENTRY]
    with zipfile.ZipFile(engine) as archive:
        assert archive.namelist() == names
        assert archive.testzip() is None
        assert archive.read(PLAN) == b"plan of second"
    if shutil.which("unzip"):
        listed = subprocess.run(["unzip", "-Z1", str(engine)], capture_output=True, text=True, check=True)
        assert listed.stdout.split() == names
        subprocess.run(["unzip", "-tq", str(engine)], check=True, capture_output=True)


def test_offsets_beyond_32_bits_stand_in_zip64_fields(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """66,000 bytes, which all that is added lies behind, stand in for 4 GiB."""
    monkeypatch.setattr(zip_records, "ZIP64_LIMIT", 66_000)
    wide = write_small_engine(engine.with_name("wide.plan"))
    add(wide, "first")
    add(wide, "second", **{"plans/large": bytes(70_000)})
    with zipfile.ZipFile(wide) as archive:
        assert archive.testzip() is None
        assert archive.getinfo("plans/large").file_size == 70_000
    Bundle.open(wide).verify()
    os.truncate(wide, wide.stat().st_size - 1)
    assert opened(wide)[0] == "first"


def test_what_is_added_behind_4_gib_is_read_by_everyone(engine: Path) -> None:
    """A hole that belongs to no entry, and takes no room on the disk, stands in for the weights."""
    bundle = Bundle.open(engine)
    comment, hole_end = engine.read_bytes()[-64:], 5 << 30
    with engine.open("r+b") as file:
        file.seek(hole_end)
        file.write(zip_records.directory(bundle.records, hole_end, comment))
    add(engine, "first")
    bundle = Bundle.open(engine)
    assert bundle.entries[PLAN].offset > hole_end
    assert bundle.read(PLAN) == b"plan of first"
    with zipfile.ZipFile(engine) as archive:
        assert archive.read(PLAN) == b"plan of first"
        assert archive.read("tokenizer.json") == SMALL_ENTRIES["tokenizer.json"]


# Torn tails.


def test_cut_at_every_byte_of_an_addition_the_file_is_what_it_was_before(engine: Path) -> None:
    before = engine.stat().st_size
    add(engine, "first")
    whole = engine.stat().st_size
    assert opened(engine) == ("first", [])
    for size in range(whole - 1, before, -1):
        os.truncate(engine, size)
        verdict, (warning,) = opened(engine)
        assert verdict == "pass"
        assert warning == (
            f"{engine}: its last {size - before:,} bytes are an addition that is not complete (interrupted, or still "
            "being written) and are passed over; add again what is missing"
        )
    os.truncate(engine, before)
    assert opened(engine) == ("pass", [])


def test_of_several_additions_the_last_whole_one_counts(engine: Path) -> None:
    for verdict in ("first", "second", "third"):
        add(engine, verdict)
    whole = engine.read_bytes()
    third = len(whole)
    for size in (third - 1, third - 100, third - 1000):
        os.truncate(engine, size)
        assert opened(engine)[0] == "second"
    engine.write_bytes(whole)
    assert opened(engine) == ("third", [])


def test_an_addition_with_a_flipped_bit_in_its_closing_part_does_not_count(engine: Path) -> None:
    before = engine.stat().st_size
    add(engine, "first")
    whole = bytearray(engine.read_bytes())
    manifest = Bundle.open(engine).entries[MANIFEST_ENTRY]
    for at in range(manifest.offset, len(whole), 7):
        whole[at] ^= 1
        engine.write_bytes(whole)
        verdict, warned = opened(engine)
        assert (verdict, len(warned)) == ("pass", 1)
        whole[at] ^= 1
    assert manifest.offset > before


def test_what_a_file_system_leaves_of_an_addition_is_passed_over(engine: Path) -> None:
    """After a power cut the length may be on the disk and the bytes not."""
    whole = engine.read_bytes()
    for tail in (b"\0", bytes(5000), b"x" * 100, b"PK\3\4", b"PK\5\6" + bytes(18), whole[-86:], whole):
        engine.write_bytes(whole + tail)
        verdict, warned = opened(engine)
        assert (verdict, len(warned)) == ("pass", 1)


def test_the_next_addition_takes_the_place_of_a_torn_one(engine: Path) -> None:
    before = engine.read_bytes()
    add(engine, "torn")
    torn = engine.read_bytes()
    shutil.copy(engine, engine.with_name("whole.plan"))
    engine.write_bytes(before)
    add(engine, "second")
    expected = engine.read_bytes()
    sizes = range(len(before) + 1, len(torn), 97)
    for size in sizes:
        engine.write_bytes(torn[:size])
        add(engine, "second")
        assert engine.read_bytes() == expected
    assert opened(engine) == ("second", [])


def test_a_writer_that_is_killed_leaves_a_torn_tail_and_no_lock(engine: Path) -> None:
    program = f"""
import os, signal
from trol_runtime.bundle_appender import BundleAppender
with BundleAppender({str(engine)!r}) as appender:
    appender.add({PLAN!r}, b"plan" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    verdict, (warning,) = opened(engine)
    assert verdict == "pass"
    assert "its last 4,060 bytes are an addition that is not complete" in warning
    add(engine, "first")
    assert opened(engine) == ("first", [])


def test_leaving_without_finish_leaves_the_file_as_it_was(engine: Path) -> None:
    before = engine.read_bytes()
    with BundleAppender(engine) as appender:
        appender.add(PLAN, b"plan")
    assert engine.read_bytes() == before


def test_an_engine_that_is_cut_short_itself_is_refused_as_ever(engine: Path) -> None:
    os.truncate(engine, engine.stat().st_size - 1)
    before = engine.read_bytes()
    with pytest.raises(EngineFileError, match="damaged or cut short: the end record is missing"):
        add(engine, "first")
    assert engine.read_bytes() == before


# Others at the same time.


def test_one_can_add_at_a_time(engine: Path) -> None:
    with BundleAppender(engine) as appender:
        with pytest.raises(TrolError, match="another process is adding to it, and one can at a time; wait for it"):
            add(engine, "second")
        appender.finish(replace(appender.manifest, parity={"verdict": "first"}))
    assert opened(engine) == ("first", [])


def test_a_writer_builds_on_what_the_writer_before_it_added(engine: Path) -> None:
    add(engine, "first", **{"plans/one": b"1"})
    add(engine, "second", **{"plans/two": b"2"})
    assert {"plans/one", "plans/two"} <= Bundle.open(engine).entries.keys()


def test_a_reader_from_before_goes_on_reading_and_mapping(engine: Path) -> None:
    bundle = Bundle.open(engine)
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = mapped[:]
        add(engine, "first")
        add(engine, "second")
        assert mapped[:] == before
    bundle.require_same_file()
    bundle.verify()
    assert {name: bundle.read(name) for name in SMALL_ENTRIES} == SMALL_ENTRIES
    assert bundle.manifest.parity["verdict"] == "pass"


def test_a_reader_of_a_torn_file_goes_on_when_the_tail_is_replaced(engine: Path) -> None:
    add(engine, "torn")
    os.truncate(engine, engine.stat().st_size - 1)
    with pytest.warns(UserWarning, match="not complete"):
        bundle = Bundle.open(engine)
    add(engine, "first")
    bundle.require_same_file()
    bundle.verify()


def test_a_reader_that_opens_while_somebody_adds_reads_what_was_there(engine: Path) -> None:
    with BundleAppender(engine) as appender:
        appender.add(PLAN, b"plan")
        verdict, warned = opened(engine)
        assert (verdict, len(warned)) == ("pass", 1)
        appender.finish(replace(appender.manifest, parity={"verdict": "first"}))
    assert opened(engine) == ("first", [])


def test_what_is_added_to_a_file_that_is_replaced_meanwhile_is_lost_in_one_line(engine: Path) -> None:
    other = write_small_engine(engine.with_name("other.plan"))
    before = other.read_bytes()
    with BundleAppender(engine) as appender:
        other.replace(engine)
        with pytest.raises(TrolError, match="replaced by another file while it was being added to; run the command"):
            appender.finish(appender.manifest)
    assert engine.read_bytes() == before


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (b"plan bytes", r"decode.plan' is damaged, or changed since the file was opened"),
        (b'"parity"', "what was added cannot be read back; run the command again"),
        (b"PK\5\6", "what was added cannot be read back; run the command again"),
    ],
)
def test_what_the_disk_gives_back_otherwise_than_written_is_not_kept(
    engine: Path, monkeypatch: pytest.MonkeyPatch, place: bytes, problem: str
) -> None:
    before, write = engine.read_bytes(), FileTail.write
    with BundleAppender(engine) as appender:
        monkeypatch.setattr(
            FileTail, "write", lambda file, data: write(file, bytes(data).replace(place, b"?" * len(place)))
        )
        appender.add(PLAN, b"plan bytes")
        with pytest.raises(EngineFileError, match=problem):
            appender.finish(appender.manifest)
    assert engine.read_bytes() == before


def test_a_manifest_that_no_reader_takes_is_not_kept(engine: Path) -> None:
    before = engine.read_bytes()
    with BundleAppender(engine) as appender, pytest.raises(EngineFileError, match="key 'precision' must be 'fp32' or"):
        appender.finish(replace(appender.manifest, precision="fp8"))  # type: ignore[arg-type]
    assert engine.read_bytes() == before


def test_too_little_disk_is_found_before_anything_is_added(engine: Path) -> None:
    before = engine.read_bytes()
    with BundleAppender(engine) as appender, pytest.raises(TrolError, match=r"needs [\d,]+ bytes, its disk has"):
        appender.require_free_bytes(10**15)
    assert engine.read_bytes() == before
