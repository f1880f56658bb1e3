"""What is added to a file behind its end: complete or not at all, by one writer at a time, no earlier byte changed.

Others may read and map the file meanwhile. Leaving the `with` block without `commit` (an error, Ctrl-C) cuts off what
was written; where even that is not possible (a crash, a power cut) it stays behind the end, as a torn tail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from io import FileIO
from types import TracebackType

from trol_runtime.errors import TrolError
from trol_runtime.output_file import OutputFile

_HELD_BY_ANOTHER = {errno.EAGAIN, errno.EACCES}


class FileTail(OutputFile):
    """The existing file `path`, open and locked for adding; `begin` says where.

    Raises TrolError when the file cannot be written, or when another process or thread is adding to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "copy the file to where it can be written")
        self._begin: int | None = None

    def __enter__(self) -> FileTail:
        try:
            self._file = FileIO(self.path, "r+b")
        except OSError as error:
            raise self._failure(error) from error
        try:
            self._lock()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A tail that cannot be cut off is what readers pass over.
        with contextlib.suppress(OSError):
            if self._begin is not None:
                self.truncate(self._begin)
        self._close()

    def begin(self, end: int) -> None:
        """Cut off what lies behind byte `end`, the torn tail of an earlier writer, and add from there."""
        self._begin = end
        self.truncate(end)

    def commit(self) -> None:
        """Keep what was added, durably. Nothing can be added afterwards.

        Raises TrolError when another file has taken the name meanwhile: nobody would find what was added to this one.
        """
        self.sync()
        self.require_same_name()
        self._begin = None

    def require_same_name(self) -> None:
        """Raise TrolError unless the path still leads to the open file."""
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._open_file.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            raise TrolError(f"{self.path}: replaced by another file while it was being added to; run the command again")

    def _lock(self) -> None:
        """Hold the file's lock until it is closed, by this process or by the end of it."""
        try:
            import fcntl
        except ImportError:
            raise TrolError(
                f"{self.path}: cannot be added to, as {sys.platform} has no file locks; add to it under Linux"
            ) from None
        try:
            fcntl.flock(self._open_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                raise self._failure(error) from error
            raise TrolError(
                f"{self.path}: another process is adding to it, and one can at a time; wait for it, then try again"
            ) from None

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
