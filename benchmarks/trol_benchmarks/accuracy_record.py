"""The file that `trol-bench accuracy -o` writes: the report and every answer, to compare later engines with.

A JSON object: the keys of the report, and "answers": {id of the question: {"right", "text", "token_ids"}}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from trol_benchmarks.accuracy import Answer, Answers, EngineIdentity
from trol_benchmarks.accuracy_report import SCHEMA, rightness
from trol_benchmarks.world.test_set import AskedQuestion, QuestionSet
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.errors import EngineFileError, TrolError
from trol_runtime.one_line import one_line

_MOST_BYTES = 256 << 20  # a thousand answers take a thousandth


@dataclass(frozen=True)
class _Set:
    version: int
    sha256: str


@dataclass(frozen=True)
class _Record:
    schema: str
    set: _Set
    engine: EngineIdentity
    answers: dict[str, Answer]


def write_record(file: AtomicFile, report: dict[str, Any], asked: Sequence[AskedQuestion], answers: Answers) -> None:
    """Write the record of a report and its answers, complete or not at all."""
    right = rightness(asked, answers)
    listed = {question.id: {"right": right[question.id], **asdict(answers.of[question.id])} for question in asked}
    with file:
        file.write(json.dumps({**report, "answers": listed}).encode() + b"\n")
        file.commit()


def is_record(path: str) -> bool:
    """Whether a file begins like a record; an engine file begins otherwise. False for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except (OSError, ValueError):
        return False


def read_record(path: str, question_set: QuestionSet, asked: Sequence[AskedQuestion]) -> Answers:
    """The answers in a record to the questions `asked` of `question_set`.

    Raises TrolError in one line for a file that is no record, for a record of another test set, and for one that lacks
    some of these answers.
    """
    record = _read(path)
    found, expected = record.set, question_set
    if (found.version, found.sha256) != (expected.version, expected.sha256):
        raise TrolError(
            f"{path}: a test set of another version than the record: this one is version {expected.version} (SHA-256 "
            f"{expected.sha256[:16]}), the record's {found.version} ({one_line(found.sha256)[:16]}); record it again "
            "with this release: trol-bench accuracy ENGINE -o FILE, or give the record's test set with --set"
        )
    answered = sum(question.id in record.answers for question in asked)
    if answered < len(asked):
        first = sum(1 for _ in takewhile(lambda question: question.id in record.answers, asked))
        remedy = f"give --limit {first}, or record all of them" if first else "record them again"
        raise TrolError(f"{path}: holds answers to {answered:,} of the {len(asked):,} questions asked; {remedy}")
    return Answers(record.engine, record.answers)


def _read(path: str) -> _Record:
    remedy = "expected what trol-bench accuracy ENGINE -o FILE writes, or an engine file"
    try:
        with open(Path(path), "rb") as file:
            values = json.loads(file.read(_MOST_BYTES))
        form = values.get("schema") if isinstance(values, dict) else None
        if form is not None and form != SCHEMA:
            raise TrolError(f"{path}: a record of the form {one_line(form, 40)}, expected {SCHEMA}; {remedy}")
        return dataclass_from_json(_Record, values)
    except OSError as error:
        raise TrolError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError, EngineFileError) as error:
        raise TrolError(f"{path}: no record of answers ({one_line(error, 120)}); {remedy}") from error
