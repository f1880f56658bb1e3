"""The peak of this process's own memory, sampled while a block runs: ru_maxrss would count mapped library pages."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import TracebackType

_SECONDS = 0.01


class SampledMemory:
    """`with SampledMemory() as memory:`, then memory.peak_bytes: anonymous and shared pages. Linux only."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> SampledMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._finished.wait(_SECONDS):
            self.peak_bytes = max(self.peak_bytes, anonymous_and_shared_bytes())


def anonymous_and_shared_bytes() -> int:
    """What this process takes now."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.findall(r"^(?:RssAnon|RssShmem):\s+(\d+) kB$", text, re.MULTILINE)
    return 1024 * sum(map(int, found))
