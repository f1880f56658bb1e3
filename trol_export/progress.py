"""Progress on stderr: one line per step with the time it took, and a bar where bytes flow."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say what is being done, and when it is done how long it took; a step that fails says nothing more."""
    if sys.stderr.isatty():
        print(f"{name} ...", end="\r", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    print(f"{name:<44} {time.perf_counter() - start:7.1f} s", file=sys.stderr, flush=True)


def counted(chunks: Iterable[bytes | memoryview], total: int) -> Iterator[bytes | memoryview]:
    """The chunks as they come, under a bar of bytes where stderr is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", leave=False, disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))
