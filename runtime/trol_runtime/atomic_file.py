"""A file that appears under its name complete or not at all.

The bytes go to a temporary file beside the final name; `commit` flushes them to the disk and renames. Leaving the
`with` block without `commit` (an error, Ctrl-C) removes the temporary file and leaves the final name as it was.
"""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path
from types import TracebackType

from trol_runtime.errors import UsageError
from trol_runtime.output_file import OutputFile

ANY_NEW_FILE = 0o666


class AtomicFile(OutputFile):
    """Write-once file at `path`; `needed_bytes` is the size it will have, if known, and is compared with the free disk.

    option: by which the user chose the path, for messages
    mode: who may read and write it, less what the process's umask takes away

    Raises UsageError when `path` exists (unless `overwrite`), is not a regular file, or lies in no directory that can
    be written; TrolError when the disk is full or refuses the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        needed_bytes: int = 0,
        option: str = "-o",
        mode: int = ANY_NEW_FILE,
    ) -> None:
        super().__init__(path, f"choose another place with {option}")
        self._option = option
        self._overwrite = overwrite
        self._mode = mode
        self._require_free_name()
        if not self.path.parent.is_dir():
            raise UsageError(f"{self.path}: directory {self.path.parent} does not exist; create it first")
        if not os.access(self.path.parent, os.W_OK):
            raise UsageError(
                f"{self.path}: no file can be made in directory {self.path.parent} (no permission); choose another "
                f"place with {option}"
            )
        self.require_free_bytes(needed_bytes)
        self.temporary_path = self.path.with_name(f"{self.path.name}.{os.urandom(4).hex()}.partial")

    def __enter__(self) -> AtomicFile:
        try:
            # Unbuffered: a full disk shows at the write that meets it, and nothing is left to flush when leaving.
            self._file = FileIO(self.temporary_path, "xb", True, self._opened)
        except OSError as error:
            raise self._failure(error) from error
        except BaseException:  # Ctrl-C between the file's creation and the line above: no `with` block knows of it yet
            self.temporary_path.unlink(missing_ok=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self.temporary_path.unlink(missing_ok=True)

    def commit(self) -> None:
        """Give the file its final name, durably. Nothing can be written afterwards."""
        self.sync()
        # Again, as minutes may have passed; what is left of the race is the instant before the rename.
        self._require_free_name()
        self._open_file.close()
        try:
            os.replace(self.temporary_path, self.path)
        except OSError as error:
            raise self._failure(error) from error
        self._file = None
        sync_directory(self.path.parent)

    def _opened(self, path: str, flags: int) -> int:
        return os.open(path, flags, self._mode)

    def _require_free_name(self) -> None:
        if os.path.lexists(self.path) and not self.path.is_file():
            raise UsageError(f"{self.path}: exists and is not a regular file; choose another name")
        if not self._overwrite and os.path.lexists(self.path):
            raise UsageError(f"{self.path}: already exists; choose another name with {self._option}")


def write_whole(
    path: Path,
    data: bytes | memoryview,
    *,
    overwrite: bool = False,
    option: str = "-o",
    mode: int = ANY_NEW_FILE,
) -> None:
    """Write a file that is in memory; arguments and errors as of AtomicFile."""
    with AtomicFile(path, overwrite=overwrite, needed_bytes=len(data), option=option, mode=mode) as file:
        file.write(data)
        file.commit()


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable, where the system lets directories be opened (not Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some network file systems refuse; the file is complete under its name either way.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
