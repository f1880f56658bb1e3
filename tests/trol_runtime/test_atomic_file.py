"""A file appears under its name complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trol_runtime import atomic_file
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.errors import TrolError, UsageError


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_nothing_stands_under_the_name_until_commit(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "out") as file:
        file.write(b"abc")
        assert not (tmp_path / "out").exists()
        file.commit()
    assert files_in(tmp_path) == {"out": b"abc"}


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "out") as file:
        file.write(b"abc")
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_leaves_nothing_and_passes_through(tmp_path: Path, interruption: type[BaseException]) -> None:
    def write() -> None:
        with AtomicFile(tmp_path / "out") as file:
            file.write(b"abc")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert files_in(tmp_path) == {}


def test_bytes_can_be_replaced_and_cut_off_before_commit(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "out") as file:
        file.write(b"head body tail")
        file.write_at(5, b"BODY")
        file.write(b"!")
        file.truncate(9)
        file.write(b".")
        assert file.tell() == 10
        file.commit()
    assert files_in(tmp_path) == {"out": b"head BODY."}


def test_an_existing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match=r"out: already exists; choose another name with -o$"):
        AtomicFile(tmp_path / "out")


def test_overwriting_replaces_only_at_commit(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with AtomicFile(tmp_path / "out", overwrite=True) as file:
        file.write(b"new")
        assert (tmp_path / "out").read_text() == "old"
        file.commit()
    assert files_in(tmp_path) == {"out": b"new"}


def test_a_file_that_appeared_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "out") as file:
        file.write(b"new")
        (tmp_path / "out").write_text("mine")
        with pytest.raises(UsageError, match="already exists"):
            file.commit()
    assert files_in(tmp_path) == {"out": b"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_that_is_no_regular_file_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(UsageError, match="exists and is not a regular file; choose another name"):
        AtomicFile(tmp_path, overwrite=overwrite)


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out: directory .*/no does not exist; create it first"):
        AtomicFile(tmp_path / "no" / "out")


def test_a_directory_that_refuses_the_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic_file, "FileIO", refuse)
    with pytest.raises(TrolError, match=r"out: cannot be written \(Permission denied\); choose another place with -o"):
        AtomicFile(tmp_path / "out").__enter__()


def test_too_little_disk_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(TrolError) as caught:
        AtomicFile(tmp_path / "out", needed_bytes=10**18)
    assert "out: needs 1,000,000,000,000,000,000 bytes, its disk has " in str(caught.value)
    assert str(caught.value).endswith(" free; free some or choose another place with -o")
    assert files_in(tmp_path) == {}


def test_a_disk_that_fills_up_in_mid_write_is_one_line_with_the_bytes_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_file, "FileIO", AlmostFull)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=90))
    with pytest.raises(TrolError) as caught, AtomicFile(tmp_path / "out", needed_bytes=80) as file:
        file.write(b"x" * 50)
    assert str(caught.value).endswith(
        "out: disk full after 32 bytes of 80 needed; 122 bytes are free without it; "
        "free some or choose another place with -o"
    )
    assert files_in(tmp_path) == {}


class AlmostFull(FileIO):
    """A file on a disk with room for 32 bytes: writes are short, as a real disk's are, then fail."""

    def write(self, data: Any) -> int:
        room = 32 - self.tell()
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(memoryview(data)[:room])


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_file_too_large_for_its_file_system_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    program = f"""
import resource
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.command import run_command
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def main(argv: list[str]) -> None:
    with AtomicFile({str(tmp_path / "out")!r}) as file:
        for _ in range(100):
            file.write(b"x" * 7_000)
        file.commit()
    return 0
raise SystemExit(run_command("writer", main))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"writer: {tmp_path / 'out'}: cannot be written (File too large); choose another place with -o\n"
    )
    assert files_in(tmp_path) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="umask is POSIX")
def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with AtomicFile(tmp_path / "out") as file:
        file.commit()
    assert os.stat(tmp_path / "out").st_mode == os.stat(tmp_path / "plain").st_mode
