"""What all files that are written have in common; how they are opened and closed is in their own tests."""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from trol_runtime.errors import TrolError
from trol_runtime.output_file import OutputFile


class Opened(OutputFile):
    """A file that is simply open, within a `with` block."""

    def __init__(self, path: Path, kind: type[FileIO] = FileIO) -> None:
        super().__init__(path, "take another disk")
        self._kind = kind

    def __enter__(self) -> Opened:
        self._file = self._kind(self.path, "xb")
        return self

    def __exit__(self, *_: object) -> None:
        self._open_file.close()


def test_nothing_is_written_before_the_file_is_open(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out is not open for writing"):
        OutputFile(tmp_path / "out", "take another disk").write(b"abc")


def test_memory_of_any_shape_is_written_as_its_bytes(tmp_path: Path) -> None:
    with Opened(tmp_path / "out") as file:
        file.write(memoryview(b"abcdefgh").cast("I"))
        assert file.tell() == 8
    assert (tmp_path / "out").read_bytes() == b"abcdefgh"


def test_a_write_is_whole_even_if_the_system_takes_it_in_parts(tmp_path: Path) -> None:
    class InParts(FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:3])

    with Opened(tmp_path / "out", InParts) as file:
        file.write(b"abcdefgh")
    assert (tmp_path / "out").read_bytes() == b"abcdefgh"


def test_too_little_disk_is_one_line_with_what_the_user_can_do(tmp_path: Path) -> None:
    with pytest.raises(TrolError) as caught:
        OutputFile(tmp_path / "out", "take another disk").require_free_bytes(10**18)
    assert str(caught.value).startswith(f"{tmp_path / 'out'}: needs 1,000,000,000,000,000,000 bytes, its disk has ")
    assert str(caught.value).endswith(" free; free some or take another disk")
