"""The process in which cases are read: one may crash, hang or swell without taking the campaign along.

It is spawned, not forked, so that nothing the campaign has loaded counts. Its memory peak while it reads the untouched
seeds is the measure: a case may at most double it.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz.case import Case, Family, Outcome, Result, Rule, WrongAnswerError, write_case
from fuzz.families import make_family
from fuzz.watch import Watch
from trol_runtime.errors import TrolError

TIME_LIMIT_S = 10.0
MEMORY_FACTOR = 2
MOST_MESSAGE_CHARACTERS = 1000
STDERR = "stderr.txt"
# Beyond what counts as too much, so that a case which takes it is told apart from one that takes all there is.
_HEADROOM_BYTES = 4 << 30


class SeedError(AssertionError):
    """An untouched seed is not read as it should be: the campaign itself is broken."""


def serve(connection: Connection, family_name: str, seeds: Path, folder: Path, time_limit_s: float) -> None:
    """Read the seeds and send "ready"; then for each number received read that case and send its Result, until None."""
    _send_stderr_to(folder / STDERR)
    os.environ["XDG_CACHE_HOME"] = str(folder.absolute())  # where the key lies that plans are held against
    os.environ["RUST_BACKTRACE"] = "0"  # symbols of a trace would count as memory of a case
    warnings.simplefilter("ignore")  # Pillow warns of damage that it reads past
    bench = Bench(make_family(family_name, seeds), seeds, folder, time_limit_s)
    connection.send("ready")
    for number in iter(connection.recv, None):
        connection.send(bench.result(bench.family.case(number)))


class Bench:
    """A family's files in a folder, read case by case under watch."""

    def __init__(self, family: Family, seeds: Path, folder: Path, time_limit_s: float) -> None:
        """Read every untouched seed; raises SeedError unless each gives its own answer."""
        self.family = family
        self._folder = folder
        self._time_limit_s = time_limit_s
        self._lying: dict[str, bytes] = {}
        self._watch = Watch([folder, seeds])
        self._memory_limit = self._seeds_peak = 0
        for seed in family.seeds:
            result = self.result(family.untouched(seed))
            self._seeds_peak = max(self._seeds_peak, peak_memory_bytes())
            if result.outcome is not Outcome.SAME:
                raise SeedError(f"{family.name}: untouched, {seed!r} gives {result.outcome.value}: {result.detail}")
        self._memory_limit = (MEMORY_FACTOR - 1) * self._seeds_peak
        resource.setrlimit(resource.RLIMIT_DATA, (self._seeds_peak + _HEADROOM_BYTES,) * 2)

    def result(self, case: Case) -> Result:
        """Put the case into the folder, read it and judge."""
        self._lay(case)
        begin_bytes = forget_memory_peak()
        begin = time.monotonic()
        with self._watch:
            result = self._read(case)
        seconds = time.monotonic() - begin
        taken = peak_memory_bytes() - begin_bytes
        if self._watch.seen and case.number >= 0:  # the seeds import what is imported late
            return Result(Outcome.ESCAPE, "; ".join(self._watch.seen))
        if seconds > self._time_limit_s:
            return Result(Outcome.HANG, f"took {seconds:.1f} s; {result.outcome.value}: {result.detail}")
        if self._memory_limit and taken > self._memory_limit + self.family.extra_memory(case):
            limit = self._memory_limit + self.family.extra_memory(case)
            return Result(Outcome.MEMORY, f"{taken:,} bytes, limit {limit:,}; {result.outcome.value}: {result.detail}")
        return result

    def _lay(self, case: Case) -> None:
        """Make the folder hold the case's files; what it holds already is not written again."""
        for name in self._lying.keys() - case.files.keys():
            (self._folder / name).unlink()
        fresh = {name: data for name, data in case.files.items() if self._lying.get(name) is not data}
        write_case(self._folder, self.family.name, case, fresh)
        self._lying = dict(case.files)

    def _read(self, case: Case) -> Result:
        try:
            same = self.family.read(self._folder, case)
        except TrolError as error:
            message = str(error)
            clear = message.isprintable() and len(message) <= MOST_MESSAGE_CHARACTERS
            return Result(Outcome.REFUSED if clear else Outcome.UNCLEAR, ascii(message[:MOST_MESSAGE_CHARACTERS]))
        except WrongAnswerError as error:
            return Result(Outcome.WRONG, str(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # pyo3's PanicException is no Exception
            return Result(Outcome.EXCEPTION, _shortly(error))
        if case.rule is Rule.REFUSE or (case.rule is Rule.SAME and not same):
            return Result(Outcome.WRONG, f"may {case.rule.value}, but gave {'the same' if same else 'another'} answer")
        return Result(Outcome.SAME if same else Outcome.OWN)


def _shortly(error: BaseException) -> str:
    """Type, message and the innermost places of the house's own code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "trol_" in frame.filename]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:])
    return ascii(f"{type(error).__name__}: {str(error)[:300]} ({places})")


def _send_stderr_to(path: Path) -> None:
    """Libraries in C and Rust write there by themselves."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    os.close(file)


def peak_memory_bytes() -> int:
    """The most this process has had resident since the peak was last forgotten (Linux; 0 elsewhere)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.partition("VmHWM:")[2].split(maxsplit=1)[0])


def forget_memory_peak() -> int:
    """Let the peak begin at what is resident now, and return that (Linux; see proc(5), clear_refs)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_bytes()
