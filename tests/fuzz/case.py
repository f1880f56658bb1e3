"""One hostile input, what may come of it, and what did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Protocol


class Rule(str, Enum):
    """What a reader may do with a case; to refuse it in one clear line is always right."""

    REFUSE = "only refuse"
    SAME = "refuse, or answer as the untouched file does"
    OWN = "refuse, or answer what the changed file says"


class Outcome(str, Enum):
    """What came of a case. The first three are allowed, as far as the case's rule goes."""

    REFUSED = "refused"
    SAME = "same answer"
    OWN = "own answer"
    WRONG = "wrong answer"
    UNCLEAR = "unclear error"
    EXCEPTION = "exception"
    ESCAPE = "escape"
    MEMORY = "memory"
    HANG = "hang"
    CRASH = "crash"


ALLOWED = (Outcome.REFUSED, Outcome.SAME, Outcome.OWN)


@dataclass(frozen=True)
class Case:
    """A changed file.

    number: makes the same case again in the same family
    seed: the untouched file it comes from
    change: what was done to it, for a person
    files: name -> content of all the files that are read together, changed or not
    """

    number: int
    seed: str
    change: str
    rule: Rule
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Result:
    """What came of a case; detail: the error's line, or what went wrong."""

    outcome: Outcome
    detail: str = ""

    @property
    def allowed(self) -> bool:
        return self.outcome in ALLOWED


class WrongAnswerError(AssertionError):
    """A reader took what it should not have taken, or read something else than what stands there."""


class Family(Protocol):
    """One kind of file: how it is damaged, and how it is read.

    seeds: the names of the untouched files, each of which is read first and must give the same answer as ever
    """

    name: str
    seeds: tuple[str, ...]

    def untouched(self, seed: str) -> Case:
        """The case in which nothing is changed."""

    def case(self, number: int) -> Case:
        """The case of this number; 0 to `systematic` - 1 go through what can be listed, all others are random."""

    @property
    def systematic(self) -> int:
        """How many cases are not random."""

    def read(self, folder: Path, case: Case) -> bool:
        """Read the case's files, which lie in `folder`; whether the answer is that of the untouched seed.

        Raises what the readers raise, and WrongAnswerError for an answer that no rule allows.
        """

    def extra_memory(self, case: Case) -> int:
        """Bytes that reading may take beyond twice what the seeds took, because the file rightly asks for them."""


RECORD = "case.json"


def write_case(folder: Path, family: str, case: Case, fresh: Mapping[str, bytes]) -> None:
    """Put those of the case's files into the folder that do not lie there yet, and a record of the case."""
    for name, data in fresh.items():
        (folder / name).write_bytes(data)
    record = {field.name: getattr(case, field.name) for field in fields(case)}
    (folder / RECORD).write_text(json.dumps({**record, "family": family, "files": sorted(case.files)}, indent=1))


def read_case(folder: Path) -> tuple[str, Case]:
    """The family and the case that `write_case` left in a folder."""
    record = json.loads((folder / RECORD).read_text())
    family = record.pop("family")
    files = {name: (folder / name).read_bytes() for name in record.pop("files")}
    return family, Case(**{**record, "rule": Rule(record["rule"])}, files=files)
