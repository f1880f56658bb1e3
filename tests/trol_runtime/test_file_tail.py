"""Adding to a file: complete or not at all, by one writer at a time, without a change to what is there."""

from __future__ import annotations

import errno
import os
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from trol_runtime import file_tail
from trol_runtime.errors import TrolError
from trol_runtime.file_tail import FileTail

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file locks")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"head")
    return path


def test_what_is_committed_stands_behind_what_was_there(file: Path) -> None:
    with FileTail(file) as tail:
        tail.begin(4)
        tail.write(b" and ")
        tail.write(b"tail")
        tail.commit()
    assert file.read_bytes() == b"head and tail"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, TrolError])
def test_leaving_without_commit_leaves_the_file_as_it_was(file: Path, interruption: type[BaseException]) -> None:
    def write() -> None:
        with FileTail(file) as tail:
            tail.begin(4)
            tail.write(b" and tail")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert file.read_bytes() == b"head"


def test_leaving_before_the_end_is_known_changes_nothing(file: Path) -> None:
    with FileTail(file):
        pass
    assert file.read_bytes() == b"head"


def test_a_torn_tail_is_cut_off_first(file: Path) -> None:
    file.write_bytes(b"head and a torn tail of a longer kind")
    with FileTail(file) as tail:
        tail.begin(4)
        tail.write(b" and tail")
        tail.commit()
    assert file.read_bytes() == b"head and tail"


def test_a_second_writer_is_refused_in_one_line_and_can_write_afterwards(file: Path) -> None:
    with FileTail(file) as first:
        first.begin(4)
        with pytest.raises(TrolError) as refused:
            FileTail(file).__enter__()
        first.write(b" 1")
        first.commit()
    assert str(refused.value) == (
        f"{file}: another process is adding to it, and one can at a time; wait for it, then try again"
    )
    with FileTail(file) as second:
        second.begin(6)
        second.write(b" 2")
        second.commit()
    assert file.read_bytes() == b"head 1 2"


def test_a_file_that_takes_the_name_meanwhile_is_found_and_left_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    with FileTail(file) as tail:
        tail.begin(4)
        tail.write(b" and tail")
        (tmp_path / "other").replace(file)
        with pytest.raises(TrolError) as caught:
            tail.commit()
    assert str(caught.value) == f"{file}: replaced by another file while it was being added to; run the command again"
    assert file.read_bytes() == b"other"


def test_a_file_that_vanishes_meanwhile_is_found(file: Path) -> None:
    with FileTail(file) as tail:
        tail.begin(4)
        file.unlink()
        with pytest.raises(TrolError, match="replaced by another file"):
            tail.commit()


def test_a_file_that_cannot_be_written_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(file_tail, "FileIO", refuse)
    with pytest.raises(TrolError) as caught:
        FileTail(file).__enter__()
    assert str(caught.value) == (
        f"{file}: cannot be written (Read-only file system); copy the file to where it can be written"
    )


def test_a_full_disk_is_one_line_and_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class AlmostFull(FileIO):
        def write(self, data: Any) -> int:
            if self.tell() >= 6:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(memoryview(data)[:2])

    monkeypatch.setattr(file_tail, "FileIO", AlmostFull)
    with FileTail(file) as tail:
        tail.begin(4)
        with pytest.raises(TrolError) as caught:
            tail.write(b" and tail")
    assert f"{file}: disk full after 2 bytes; " in str(caught.value)
    assert str(caught.value).endswith("free some or copy the file to where it can be written")
    assert file.read_bytes() == b"head"


def test_a_system_without_file_locks_says_what_to_do_instead(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(TrolError, match=r"cannot be added to, as \w+ has no file locks; add to it under Linux$"):
        FileTail(file).__enter__()


def test_a_tail_that_cannot_be_cut_off_does_not_hide_what_went_wrong(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def write() -> None:
        with FileTail(file) as tail:
            tail.begin(4)
            tail.write(b" and tail")
            monkeypatch.setattr(os, "fsync", fail)
            monkeypatch.setattr(FileTail, "truncate", fail)
            tail.commit()

    with pytest.raises(TrolError, match=r"cannot be written \(Input/output error\)"):
        write()
