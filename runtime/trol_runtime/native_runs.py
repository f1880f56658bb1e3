"""Runs of native code that the end of the program waits for.

A daemon thread that comes back from native code when Python has ended is unwound by force; C++ aborts the process then.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Runs:
    """Those of other threads than the main one, which is the one that ends the program and alone sees Ctrl-C."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        self.here = threading.local()
        self._changed = threading.Condition()
        self._running = 0
        self._ended = False

    def enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._ended)  # for ever: nobody waits for a daemon thread
            self._running += 1

    def leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._running)


_runs = _Runs()
atexit.register(_runs.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runs.begin_anew)  # the threads that were running are not in the child


@contextmanager
def native_run() -> Iterator[None]:
    """The program does not end within it; where it is ending already, another thread than the main one stays here.

    One within another is part of that.
    """
    here = _runs.here
    if getattr(here, "is_running", False) or threading.current_thread() is threading.main_thread():
        yield
        return
    _runs.enter()
    here.is_running = True
    try:
        yield
    finally:
        here.is_running = False
        _runs.leave()
