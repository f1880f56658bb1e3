"""What TensorRT for RTX compiled for this GPU, kept in the user's cache directory: the next start need not do it again.

RTX compiles a plan's kernels for the GPU when they are first needed. What it made it gives out as a runtime cache, and
takes back where version, driver and GPU are the same (IRuntimeCache.deserialize checks).
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from trol_runtime.atomic_file import write_whole
from trol_runtime.errors import TrolError
from trol_runtime.user_cache import cache_directory, make_folder

_PRIVATE_FILE = 0o600
_DIGITS = 32  # of a SHA-256, enough that no two plans share a file


class RtxCompiled:
    """The compiled kernels of one plan. cache: an IRuntimeCache, filled from the last time."""

    def __init__(self, trt: Any, plan: bytes, cache: Any) -> None:
        digest = hashlib.sha256(plan).hexdigest()[:_DIGITS]
        self._path = cache_directory() / "rtx" / f"{trt.__version__}-{digest}"
        self._cache = cache
        known = _read(self._path)
        # One that another driver or GPU made is not taken, and replaced later.
        self._is_kept = known is not None and bool(cache.deserialize(known))

    def keep(self) -> None:
        """Write what was compiled by now, once; where the disk refuses, the next start compiles again."""
        if self._is_kept:
            return
        self._is_kept = True
        with suppress(TrolError):
            make_folder(self._path.parent)
            data = bytes(self._cache.serialize())
            write_whole(self._path, data, overwrite=True, option="XDG_CACHE_HOME", mode=_PRIVATE_FILE)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
