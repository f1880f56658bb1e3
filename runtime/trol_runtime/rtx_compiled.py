"""What TensorRT for RTX compiled for this GPU, kept in the user's cache directory: the next start need not do it again.

RTX compiles a plan's kernels for the GPU when they are first needed, and those for single shapes in the background of
later runs. What it made it gives out as a runtime cache, and takes back where version, driver and GPU are the same
(IRuntimeCache.deserialize checks).
"""

from __future__ import annotations

import hashlib
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from trol_runtime.atomic_file import write_whole
from trol_runtime.errors import TrolError
from trol_runtime.loading_process import LoadingProcess
from trol_runtime.user_cache import cache_directory, make_folder

_PRIVATE_FILE = 0o600
_DIGITS = 32  # of a SHA-256, enough that no two plans share a file


class RtxCompiled:
    """The compiled kernels of one plan. cache: an IRuntimeCache, filled from the last time."""

    def __init__(self, trt: Any, plan: bytes, cache: Any) -> None:
        digest = hashlib.sha256(plan).hexdigest()[:_DIGITS]
        self._path = cache_directory() / "rtx" / f"{trt.__version__}-{digest}"
        self._cache, self._process = cache, LoadingProcess()
        self._ran = False
        known = _read(self._path)
        if known is not None:
            cache.deserialize(known)  # one that another driver or GPU made is not taken, and replaced later

    def keep(self) -> None:
        """After a run: write what was compiled by now, and once more what is by the end of this object or the process.

        Writing after every run would cost as much as the run.
        """
        if not self._ran:
            self._ran = True
            _write(self._path, self._cache, self._process)
            weakref.finalize(self, _write, self._path, self._cache, self._process)


def _write(path: Path, cache: Any, process: LoadingProcess) -> None:
    """Write what the cache holds unless it is there already; where the disk refuses, the next start compiles again.

    A fork ends without: it has no GPU to ask.
    """
    if not process.is_this:
        return
    compiled = cache.serialize()
    if compiled is None:  # RTX finds no GPU any more, as late in a process that ends
        return
    data = bytes(compiled)
    if data != _read(path):
        with suppress(TrolError):
            make_folder(path.parent)
            write_whole(path, data, overwrite=True, option="XDG_CACHE_HOME", mode=_PRIVATE_FILE)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
