"""The record of an engine's answers: what is written is read again, and what does not fit is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from small_question_set import small_question_set
from trol_benchmarks.accuracy import Answer, Answers, EngineIdentity
from trol_benchmarks.accuracy_record import is_record, read_record, write_record
from trol_benchmarks.accuracy_report import accuracy_report
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.errors import TrolError, UsageError

SET = small_question_set()
ANSWERS = Answers(
    EngineIdentity("a" * 64, "fp32", "cpu", "t" * 64),
    {question.id: Answer(question.question.answer.lower(), (7, 2)) for question in SET.questions},
)
EXPECTED = "expected what trol-bench accuracy ENGINE -o FILE writes, or an engine file"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return written(tmp_path / "record.json")


def written(path: Path, questions: int = 6) -> Path:
    asked = SET.questions[:questions]
    write_record(AtomicFile(path), accuracy_report(SET, asked, ANSWERS, None), asked, ANSWERS)
    return path


def changed(record: Path, **values: Any) -> str:
    record.write_text(json.dumps(json.loads(record.read_text()) | values))
    return str(record)


def refusal(path: str | Path, question_set: Any = SET) -> str:
    with pytest.raises(TrolError) as error:
        read_record(str(path), question_set, question_set.questions)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_record_is_the_report_and_every_answer(record: Path) -> None:
    found = json.loads(record.read_text())
    report = accuracy_report(SET, SET.questions, ANSWERS, None)
    assert {key: found[key] for key in report} == report
    assert found.keys() - report.keys() == {"answers"}
    assert found["answers"]["0-word"] == {"right": True, "text": "cat", "token_ids": [7, 2]}


def test_what_is_read_is_what_was_written(record: Path) -> None:
    assert read_record(str(record), SET, SET.questions) == ANSWERS


def test_a_record_of_more_questions_serves_for_fewer(record: Path) -> None:
    assert read_record(str(record), SET, SET.questions[:2]).of.keys() >= {"0-colour", "0-count"}


def test_a_record_is_told_from_an_engine_file_by_how_it_begins(record: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine.plan"
    engine.write_bytes(b"PK\x03\x04")
    assert is_record(str(record))
    assert not is_record(str(engine))
    assert not is_record(str(tmp_path / "nothing"))
    assert not is_record(str(tmp_path))


def test_a_record_of_another_test_set_is_refused(record: Path) -> None:
    other = small_question_set(seed=4)
    assert refusal(record, other) == (
        f"{record}: a test set of another version than the record: this one is version 1 "
        f"(SHA-256 {other.sha256[:16]}), the record's 1 ({SET.sha256[:16]}); record it again with this release: "
        "trol-bench accuracy ENGINE -o FILE, or give the record's test set with --set"
    )
    assert "the record's 9 (" in refusal(changed(record, set={"version": 9, "sha256": SET.sha256}))


def test_a_record_of_too_few_answers_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "part.json", questions=2)
    assert refusal(path) == (
        f"{path}: holds answers to 2 of the 6 questions asked; give --limit 2, or record all of them"
    )


def test_what_lies_before_a_gap_can_be_asked_and_nothing_if_it_comes_first(record: Path) -> None:
    answers = json.loads(record.read_text())["answers"]
    missing = lambda *ids: {name: answer for name, answer in answers.items() if name not in ids}  # noqa: E731
    assert refusal(changed(record, answers=missing("0-word"))) == (
        f"{record}: holds answers to 5 of the 6 questions asked; give --limit 2, or record all of them"
    )
    assert refusal(changed(record, answers=missing("0-colour"))) == (
        f"{record}: holds answers to 5 of the 6 questions asked; record them again"
    )


def test_a_file_that_is_no_record_is_refused(record: Path, tmp_path: Path) -> None:
    assert refusal(changed(record, answers=3)) == (
        f"{record}: no record of answers (key 'answers' must be an object, found 3); {EXPECTED}"
    )
    assert refusal(changed(record, answers=3, schema="trol-bench accuracy 2")) == (
        f"{record}: a record of the form trol-bench accuracy 2, expected trol-bench accuracy 1; {EXPECTED}"
    )
    record.write_text(record.read_text()[:-9])
    assert refusal(record).startswith(f"{record}: no record of answers (")
    record.write_bytes(b'{"\xff": 1}')
    assert refusal(record).endswith(f"; {EXPECTED}")
    record.write_text('{"answers": ' * 100_000)
    assert refusal(record).endswith(f"; {EXPECTED}")
    assert refusal(tmp_path / "none.json") == (
        f"{tmp_path / 'none.json'}: cannot be read (No such file or directory); {EXPECTED}"
    )


def test_a_record_never_replaces_a_file(record: Path) -> None:
    before = record.read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        written(record)
    assert record.read_bytes() == before
