"""Progress on stderr: one line per step with the time it took; a terminal sees what is being done and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WIDTH = 50  # of what is being done, before the time it took


@contextmanager
def step(name: str, behind: Callable[[float], str] | None = None) -> Iterator[Callable[[float], None]]:
    """Say what is being done, and when it is done how long it took; a step that fails says nothing more.

    behind: given the seconds, what to add to the line
    Yields what may be told which share of the step is done, 0 to 1.
    """
    watched = sys.stderr.isatty()
    if watched:
        print(f"{name} ...", end="\r", file=sys.stderr, flush=True)

    def say_share(share: float) -> None:
        if watched:
            print(f"{name:<{_WIDTH}} {share:7.0%}", end="\r", file=sys.stderr, flush=True)

    begin = time.perf_counter()
    yield say_share
    seconds = time.perf_counter() - begin
    line = f"{name:<{_WIDTH}} {seconds:7.1f} s" + (behind(seconds) if behind else "")
    print(line, file=sys.stderr, flush=True)
