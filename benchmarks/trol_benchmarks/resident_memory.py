"""Resident memory of a process and all its descendants, by kind, sampled from /proc while it runs (Linux only).

Anonymous and shared memory is what a process takes; file pages (mapped weights, program code) the system can drop and
read again, so they are always given apart.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.02

# What /proc/PID/status calls the three kinds, in kB.
_ANONYMOUS, _FILE, _SHARED = "RssAnon", "RssFile", "RssShmem"


@dataclass(frozen=True)
class Resident:
    """Resident bytes of a process tree. A file page mapped by two of its processes counts twice."""

    anonymous: int = 0
    file: int = 0
    shared: int = 0

    @property
    def taken(self) -> int:
        """Anonymous and shared bytes: what export budgets count."""
        return self.anonymous + self.shared

    @property
    def total(self) -> int:
        return self.anonymous + self.file + self.shared

    def __add__(self, other: Resident) -> Resident:
        return Resident(self.anonymous + other.anonymous, self.file + other.file, self.shared + other.shared)


@dataclass
class Peak:
    """The samples with the most taken and the most in total; both empty until a sample came."""

    taken: Resident = Resident()
    total: Resident = Resident()
    samples: int = 0

    def add(self, sample: Resident) -> None:
        self.samples += 1
        self.taken = max(self.taken, sample, key=lambda resident: resident.taken)
        self.total = max(self.total, sample, key=lambda resident: resident.total)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def resident(pid: int) -> Resident:
    """Resident memory of `pid` and its descendants now; nothing for processes that have ended."""
    return sum((_of_one(Path("/proc") / str(member)) for member in process_tree(pid)), Resident())


def resident_of_status(status: str) -> Resident:
    """Read the text of /proc/PID/status; a zombie or a kernel thread has none of the lines."""
    kilobytes: Mapping[str, int] = {
        key: int(value.split()[0])
        for key, _, value in (line.partition(":") for line in status.splitlines())
        if key in (_ANONYMOUS, _FILE, _SHARED)
    }
    anonymous, file, shared = (1024 * kilobytes.get(key, 0) for key in (_ANONYMOUS, _FILE, _SHARED))
    return Resident(anonymous, file, shared)


def process_tree(pid: int) -> Iterator[int]:
    """`pid` and all its descendants, parents first."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _text(children).split():
            yield from process_tree(int(child))


@contextmanager
def peak_of(pid: int) -> Iterator[Peak]:
    """Sample `pid` and its descendants every SAMPLE_SECONDS until the block ends; the peak is complete afterwards."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak.add(resident(pid))
            done.wait(SAMPLE_SECONDS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _of_one(process: Path) -> Resident:
    return resident_of_status(_text(process / "status"))


def _text(path: Path) -> str:
    """The content of a file of /proc, nothing when its process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
