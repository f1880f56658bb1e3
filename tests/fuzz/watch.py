"""What a reader does besides reading, as Python's audit events tell it: files opened, code run, processes started.

Only Python's own doing is seen. What ONNX Runtime opens is not: that graphs refer to nothing but the engine file is
checked on the graphs themselves (`engine_entries`).
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

# The kernel's answers about memory and processors.
_SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom")

_FORBIDDEN = (
    *("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "socket.", "ctypes."),
    *("pickle.find_class", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod", "shutil."),
)


class Watch:
    """A context in which opening other files than those below `folders`, or running code of unknown origin, is noted.

    seen: what was noted since the context was entered. An audit hook stays for the life of the process.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(os.path.realpath(folder) + os.sep for folder in folders)
        code = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *filter(None, sys.path)}
        self._code = tuple(os.path.realpath(folder) + os.sep for folder in code)
        self._active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def __enter__(self) -> Watch:
        self.seen.clear()
        self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        self._active = False  # looking at an event causes others
        try:
            self._look(event, arguments)
        finally:
            self._active = True

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if not path.startswith(self._folders) and (writes or not path.startswith((*self._code, *_SYSTEM))):
                self.seen.append(f"opened {path!r}{' for writing' if writes else ''}")
        elif event == "exec" and not self._is_installed(getattr(arguments[0], "co_filename", "?")):
            self.seen.append(f"ran code of {arguments[0].co_filename!r}")
        elif event.startswith(_FORBIDDEN):
            self.seen.append(f"{event} {arguments!r}"[:200])

    def _is_installed(self, filename: str) -> bool:
        # "<frozen importlib...>" imports, "<string>" makes the methods of dataclasses and named tuples.
        return filename.startswith(("<frozen ", *self._code))
