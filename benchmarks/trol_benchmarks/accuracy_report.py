"""How many of its questions an engine got right, family by family, and how that compares with another engine.

    {"schema", "set": {"version", "sha256", "n"}, "engine": {"sha256", "precision", "target", "tokenizer_sha256"},
     "families": {name: {"n", "correct", "accuracy", "ci95"}}, "closed": the same of CLOSED families, or null,
     "overall": {"n", "correct", "accuracy", "ci95"},
     "against": {"engine", "equal_share", "first_divergence", "only_this_right", "only_other_right", "p_value"} or null}

Where a family has questions both about what training may have shown and about what it cannot have, its entry also has
"seen" and "unseen", of the same form; families that read have "seen_typed" and "unseen_typed", too, for some of their
questions offer the text among lettered options, which chance alone gets right now and then. A run of fewer questions
than the set's has an overall "n" below that of the set.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trol_benchmarks.accuracy import Answers
from trol_benchmarks.confidence import mcnemar_p_value, wilson_interval
from trol_benchmarks.report import Row, table
from trol_benchmarks.world.questions import CLOSED, FAMILIES, READ
from trol_benchmarks.world.scoring import is_right
from trol_benchmarks.world.test_set import AskedQuestion, QuestionSet

SCHEMA = "trol-bench accuracy 1"
PARTS = ("seen", "seen_typed", "unseen", "unseen_typed")  # of a family


def accuracy_report(
    question_set: QuestionSet, asked: Sequence[AskedQuestion], answers: Answers, against: Answers | None
) -> dict[str, Any]:
    """The report as JSON values. asked: the questions of the set that both engines answered, one or more."""
    right = rightness(asked, answers)
    families = {name: [question for question in asked if question.question.family == name] for name in FAMILIES}
    closed = [question for name in CLOSED for question in families[name]]
    return {
        "schema": SCHEMA,
        "set": {"version": question_set.version, "sha256": question_set.sha256, "n": len(question_set.questions)},
        "engine": asdict(answers.engine),
        "families": {name: _family(questions, right) for name, questions in families.items() if questions},
        "closed": _score(closed, right) if closed else None,
        "overall": _score(asked, right),
        "against": None if against is None else _comparison(asked, answers, against),
    }


def rightness(asked: Sequence[AskedQuestion], answers: Answers) -> dict[str, bool]:
    """Whether each answer is right, by the id of the question."""
    return {question.id: is_right(question.question, answers.of[question.id].text) for question in asked}


def as_text(report: dict[str, Any]) -> str:
    """The report for a person."""
    about, overall = report["set"], report["overall"]
    part = "" if overall["n"] == about["n"] else f"the first {overall['n']:,} of the "
    lines = [
        f"engine    {_engine(report['engine'])}",
        f"test set  version {about['version']}, SHA-256 {about['sha256'][:16]}, {part}{about['n']:,} questions, greedy",
        "",
        table(_rows(report)),
    ]
    if report["against"] is not None:
        lines += ["", f"against   {_engine(report['against']['engine'])}", table(_comparison_rows(report["against"]))]
    return "\n".join(lines)


def _family(questions: Sequence[AskedQuestion], right: dict[str, bool]) -> dict[str, Any]:
    return {**_score(questions, right), **{name: _score(part, right) for name, part in _parts(questions).items()}}


def _parts(questions: Sequence[AskedQuestion]) -> dict[str, list[AskedQuestion]]:
    """What of a family is counted apart, too, by name; nothing that is empty or the whole."""
    halves = {
        "seen": [question for question in questions if question.seen],
        "unseen": [question for question in questions if not question.seen],
    }
    if not all(halves.values()):
        return {}
    reads = questions[0].question.family in READ
    typed = {name: [q for q in half if q.question.form != "letter"] for name, half in halves.items() if reads}
    return halves | {f"{name}_typed": part for name, part in typed.items() if 0 < len(part) < len(halves[name])}


def _score(questions: Sequence[AskedQuestion], right: dict[str, bool]) -> dict[str, Any]:
    n, correct = len(questions), sum(right[question.id] for question in questions)
    return {"n": n, "correct": correct, "accuracy": correct / n, "ci95": list(wilson_interval(correct, n))}


def _comparison(asked: Sequence[AskedQuestion], answers: Answers, against: Answers) -> dict[str, Any]:
    pairs = [(answers.of[question.id], against.of[question.id]) for question in asked]
    different = [(this.token_ids, other.token_ids) for this, other in pairs if this.text != other.text]
    comparable = answers.engine.tokenizer_sha256 == against.engine.tokenizer_sha256
    divergence = [_first_difference(*ids) for ids in different] if comparable else []
    right = list(zip(rightness(asked, answers).values(), rightness(asked, against).values(), strict=True))
    only_this, only_other = right.count((True, False)), right.count((False, True))
    return {
        "engine": asdict(against.engine),
        "equal_share": 1 - len(different) / len(pairs),
        "first_divergence": {"smallest": min(divergence), "median": statistics.median(divergence)}
        if divergence
        else None,
        "only_this_right": only_this,
        "only_other_right": only_other,
        "p_value": mcnemar_p_value(only_this, only_other),
    }


def _first_difference(ids: Sequence[int], others: Sequence[int]) -> int:
    """Place, from 0, of the first token in which two answers differ; where one goes on and the other has ended."""
    pairs = zip(ids, others)  # noqa: B905 - the longer one differs behind the shorter
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(others)))


def _engine(engine: dict[str, str]) -> str:
    return f"{engine['precision']} on {engine['target']}, SHA-256 {engine['sha256'][:16]}"


def _rows(report: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [("family", "questions", "right", "accuracy", "95 % interval")]
    for name, family in report["families"].items():
        rows.append(_score_row(name, family))
        rows += [_score_row(f"  {part.replace('_', ', ')}", family[part]) for part in PARTS if part in family]
    if report["closed"] is not None:
        rows.append(_score_row("all but reading, describing", report["closed"]))
    return [*rows, _score_row("overall", report["overall"])]


def _score_row(name: str, score: dict[str, Any]) -> Row:
    low, high = (f"{100 * end:.1f}" for end in score["ci95"])
    return name, f"{score['n']:,}", f"{score['correct']:,}", f"{100 * score['accuracy']:.1f} %", f"{low} to {high}"


def _comparison_rows(against: dict[str, Any]) -> list[Row]:
    first = against["first_divergence"]
    return [
        ("equal answers", f"{100 * against['equal_share']:.1f} %"),
        ("first token that differs, smallest", "-" if first is None else f"{first['smallest']}"),
        ("first token that differs, median", "-" if first is None else f"{first['median']:g}"),
        ("right here alone", f"{against['only_this_right']}"),
        ("right there alone", f"{against['only_other_right']}"),
        ("p-value of that split (McNemar, exact)", f"{against['p_value']:.3g}"),
    ]
