"""The process that loaded an engine: a fork of it has none of its threads, and no GPU."""

from __future__ import annotations

import ctypes
import os

from trol_runtime.errors import TrolError


class LoadingProcess:
    """The one that makes this."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_this(self) -> bool:
        """False in a fork."""
        return os.getpid() == self._id

    def require(self) -> None:
        """Raise TrolError in a fork: ONNX Runtime would wait for threads that are not there, and CUDA, which does not
        support fork(), would do anything (https://github.com/NVIDIA/cuda-python/pull/1309)."""
        if not self.is_this:
            raise TrolError(
                f"the engine was loaded in process {self._id} and is used in its fork {os.getpid()}; load it after "
                "forking, or start processes with multiprocessing's spawn"
            )


def never_destroy(owner: object) -> None:
    """Keep an object, and all that it holds, beyond the end of the program: in a fork, native code has nothing to free.

    May be called from `__del__`, whose object then stays.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
