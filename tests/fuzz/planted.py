"""A family whose reader does, case by case, what no reader may: the campaign must see each of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fuzz.case import Case, Outcome, Rule, WrongAnswerError
from trol_runtime.errors import EngineFileError


def _refuse(message: str) -> bool:
    raise EngineFileError(message)


def _fail(error: BaseException) -> bool:
    raise error


def _write_elsewhere(folder: Path) -> bool:
    with open(folder.parent / f"{folder.name}-elsewhere", "w"):
        return True


def _read_elsewhere(folder: Path) -> bool:
    with open("/etc/passwd") as file:
        return file.readable()


# What a case may take here: less than elsewhere, more than the others take on a machine that is busy.
LIMIT_S = 3.0


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


# What is done, what the campaign must call it, and how it is done.
MISDEEDS: tuple[tuple[str, Outcome, Callable[[Path], bool]], ...] = (
    ("the same answer", Outcome.SAME, lambda folder: True),
    ("another answer", Outcome.WRONG, lambda folder: False),
    ("an answer that no rule allows", Outcome.WRONG, lambda folder: _fail(WrongAnswerError("x"))),
    ("a clear error", Outcome.REFUSED, lambda folder: _refuse("the file is damaged; copy it again")),
    ("an error of two lines", Outcome.UNCLEAR, lambda folder: _refuse("the file\nis damaged")),
    ("an error that clears the screen", Outcome.UNCLEAR, lambda folder: _refuse("\x1b[2J")),
    ("an endless error", Outcome.UNCLEAR, lambda folder: _refuse("x" * 5000)),
    ("a KeyError", Outcome.EXCEPTION, lambda folder: _fail(KeyError("x"))),
    ("a panic, which is no Exception", Outcome.EXCEPTION, lambda folder: _fail(BaseException("panicked"))),
    ("a file of the system read", Outcome.ESCAPE, _read_elsewhere),
    ("a file written elsewhere", Outcome.ESCAPE, _write_elsewhere),
    ("code run from data", Outcome.ESCAPE, lambda folder: eval("len('x') == 1")),
    ("a program started", Outcome.ESCAPE, lambda folder: subprocess.run(["true"]).returncode == 0),
    ("much memory taken", Outcome.MEMORY, lambda folder: len(b"x" * (1 << 28)) > 0),
    ("a slow answer", Outcome.HANG, lambda folder: _sleep(LIMIT_S + 0.5)),
    ("no answer at all", Outcome.HANG, lambda folder: _sleep(3600)),
    ("the process killed", Outcome.CRASH, lambda folder: os.abort() is None),
    ("the same answer, after all that", Outcome.SAME, lambda folder: True),
)


class Planted:
    """Case n commits misdeed n."""

    name = "fuzz.planted:Planted"
    seeds = ("seed",)

    def __init__(self, seeds: Path) -> None:
        pass

    @property
    def systematic(self) -> int:
        return len(MISDEEDS)

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {"file": b"seed"})

    def case(self, number: int) -> Case:
        return Case(number, "seed", MISDEEDS[number][0], Rule.SAME, {"file": b"changed"})

    def read(self, folder: Path, case: Case) -> bool:
        return case.number < 0 or MISDEEDS[case.number][2](folder)

    def extra_memory(self, case: Case) -> int:
        return 0
