"""Keep the memory that a training step frees for the next one, instead of giving it back to the system each time."""

from __future__ import annotations

import ctypes

# glibc's malloc.h: parameters of mallopt, and what keeps everything in one heap that only grows.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER, _GROWTH_BYTES, _NO_MAPPINGS = 2**31 - 1, 500_000_000, 0


def keep_freed_memory() -> bool:
    """Ask the C library not to return freed memory while this process lives; whether it could be asked.

    A step allocates and frees some hundred megabytes. Returned to the system, every page of it is cleared and mapped
    again in the next step. Only glibc knows these settings; any other keeps its own ways.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    settings = {_M_MMAP_MAX: _NO_MAPPINGS, _M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _GROWTH_BYTES}
    return all([mallopt(parameter, value) == 1 for parameter, value in settings.items()])
