"""Cases by their numbers, given to a worker one by one: what came of them is counted, what must not be is kept.

A failing case is saved as a folder: its files, the record of its making, the verdict. `replay` reads such a folder
again, after the untouched seeds, as the campaign did.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from fuzz.case import Outcome, Result, read_case
from fuzz.families import make_family
from fuzz.worker import STDERR, TIME_LIMIT_S, Bench, SeedError, serve

# A worker imports torch and reads the seeds before its first case.
_START_LIMIT_S = 120.0
# The worker reports a slow case by itself; after this many times its limit it is stuck.
_STUCK_FACTOR = 2
VERDICT = "verdict.json"
MOST_FAILURES = 20  # of one family: the same fault a hundred times says no more


@dataclass
class Tally:
    """Counts of a family's outcomes, and where its failing cases were saved."""

    family: str
    counts: Counter[Outcome] = field(default_factory=Counter)
    failures: list[tuple[Path, Result]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        return self.counts.total()


def run_family(
    family: str,
    seeds: Path,
    numbers: Iterable[int],
    failures: Path,
    seconds: float = float("inf"),
    time_limit_s: float = TIME_LIMIT_S,
) -> Tally:
    """Read the cases of these numbers, for at most `seconds`; failing cases are saved below the folder `failures`.

    time_limit_s: what a case may take
    """
    tally = Tally(family)
    begin = time.monotonic()
    with _Reader(family, seeds, time_limit_s) as reader:
        for number in numbers:
            result = reader.result(number)
            tally.counts[result.outcome] += 1
            if not result.allowed:
                tally.failures.append((_saved(reader.folder, failures, family, number, result), result))
            if len(tally.failures) >= MOST_FAILURES or time.monotonic() - begin > seconds:
                break
    tally.seconds = time.monotonic() - begin
    return tally


def replay(folder: Path, seeds: Path) -> Result:
    """What comes of a saved case now, read in this process: a crash is one."""
    family_name, case = read_case(folder)
    with tempfile.TemporaryDirectory() as scratch:
        return Bench(make_family(family_name, seeds), seeds, Path(scratch), TIME_LIMIT_S).result(case)


class _Reader:
    """A worker, replaced by a fresh one whenever a case has ended it."""

    def __init__(self, family: str, seeds: Path, time_limit_s: float) -> None:
        self._family = family
        self._seeds = seeds
        self._time_limit_s = time_limit_s
        self._process: BaseProcess | None = None
        self._connection: Connection
        self._scratch = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.folder = Path(self._scratch.name)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._scratch.cleanup()

    def result(self, number: int) -> Result:
        """What comes of the case of this number."""
        if self._process is None:
            self._start()
        self._connection.send(number)
        return self._receive(_STUCK_FACTOR * self._time_limit_s)

    def _start(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._family, self._seeds, self.folder, self._time_limit_s)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        ready = self._receive(_START_LIMIT_S)
        if ready != "ready":
            raise SeedError(f"{self._family}: no worker starts ({ready.outcome.value})")

    def _receive(self, limit_s: float) -> Any:
        if not self._connection.poll(limit_s):
            self._stop()
            return Result(Outcome.HANG, f"no answer after {limit_s:.0f} s")
        try:
            return self._connection.recv()
        except EOFError:
            assert self._process is not None
            self._process.join()
            code = self._process.exitcode
            self._stop()
            if code == 1:  # Python's own: whatever readers raise is caught
                printed = (self.folder / STDERR).read_text(errors="replace")
                raise SeedError(f"{self._family}: the campaign itself failed\n{printed}") from None
            return Result(Outcome.CRASH, f"the process ended with {code}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def _saved(folder: Path, failures: Path, family: str, number: int, result: Result) -> Path:
    """A copy of the case's folder with the verdict in it."""
    target = failures / f"{family.replace(' ', '-')}-{number}"
    shutil.copytree(folder, target, dirs_exist_ok=True)
    (target / VERDICT).write_text(json.dumps({"outcome": result.outcome.value, "detail": result.detail}, indent=1))
    return target
