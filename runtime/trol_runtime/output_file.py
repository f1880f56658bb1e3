"""A file being written: every write is whole, nothing is buffered, a full disk is one line with the bytes it lacks."""

from __future__ import annotations

import errno
import os
import shutil
from io import FileIO
from pathlib import Path

from trol_runtime.errors import TrolError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class OutputFile:
    """The base of files that are opened in one way or another.

    path: for messages, and to find its disk. remedy: what the user can do when the disk refuses it
    """

    def __init__(self, path: str | os.PathLike[str], remedy: str) -> None:
        self.path = Path(path)
        self._remedy = remedy
        self._needed_bytes = 0
        self._written = 0
        self._file: FileIO | None = None

    def require_free_bytes(self, needed: int) -> None:
        """Raise TrolError unless the disk of this file has room for `needed` more bytes."""
        self._needed_bytes = max(self._needed_bytes, self._written + needed)
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise TrolError(
                f"{self.path}: needs {needed:,} bytes, its disk has {free:,} free; free some or {self._remedy}"
            )

    @property
    def _open_file(self) -> FileIO:
        if self._file is None:
            raise ValueError(f"{self.path} is not open for writing")
        return self._file

    def tell(self) -> int:
        """Bytes from the start of the file to where the next `write` goes."""
        return self._open_file.tell()

    def write(self, data: bytes | memoryview) -> None:
        """Append `data` at the current position."""
        rest = memoryview(data).cast("B")
        try:
            while rest:
                written = self._open_file.write(rest)
                self._written += written
                rest = rest[written:]
        except OSError as error:
            raise self._failure(error) from error

    def write_at(self, offset: int, data: bytes) -> None:
        """Replace the bytes at `offset`; the current position stays."""
        position = self.tell()
        self._open_file.seek(offset)
        self.write(data)
        self._open_file.seek(position)

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes and continue writing there."""
        self._open_file.seek(size)
        self._open_file.truncate()

    def sync(self) -> None:
        """Return once the bytes written so far are on the disk."""
        try:
            os.fsync(self._open_file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> TrolError:
        if error.errno in _NO_ROOM:
            free = shutil.disk_usage(self.path.parent).free + self._written
            needed = f" of {self._needed_bytes:,} needed" if self._needed_bytes else ""
            return TrolError(
                f"{self.path}: disk full after {self._written:,} bytes{needed}; "
                f"{free:,} bytes are free without it; free some or {self._remedy}"
            )
        return TrolError(f"{self.path}: cannot be written ({error.strerror}); {self._remedy}")
