"""What is counted, how two engines are compared, and what a person sees of it."""

from __future__ import annotations

import json

import pytest

from small_question_set import small_question_set
from trol_benchmarks.accuracy import Answer, Answers, EngineIdentity
from trol_benchmarks.accuracy_report import accuracy_report, as_text
from trol_benchmarks.confidence import wilson_interval
from trol_benchmarks.world.questions import Question
from trol_benchmarks.world.test_set import AskedQuestion

SET = small_question_set()
ENGINE = EngineIdentity("a" * 64, "fp32", "cpu", "t" * 64)
OTHER = EngineIdentity("b" * 64, "fp16", "cpu", "t" * 64)
RIGHT = {question.id: question.question.answer for question in SET.questions}


def answers(engine: EngineIdentity = ENGINE, **said: str) -> Answers:
    """The right answers but for those given, one token per character and one that ends them."""
    texts = RIGHT | {f"{name[1:]}".replace("_", "-"): text for name, text in said.items()}
    return Answers(engine, {name: Answer(text, (*map(ord, text), 2)) for name, text in texts.items()})


def test_every_family_is_counted_with_its_interval() -> None:
    report = accuracy_report(SET, SET.questions, answers(_0_colour="green", _1_existence="Yes"), None)
    assert report["schema"] == "trol-bench accuracy 1"
    assert report["set"] == {"version": SET.version, "sha256": SET.sha256, "n": 6}
    assert report["engine"]["sha256"] == "a" * 64
    assert list(report["families"]) == ["colour", "count", "existence", "word"]
    assert report["families"]["colour"] == {
        "n": 2,
        "correct": 1,
        "accuracy": 0.5,
        "ci95": list(wilson_interval(1, 2)),
    }
    assert report["overall"] == {"n": 6, "correct": 4, "accuracy": 4 / 6, "ci95": list(wilson_interval(4, 6))}
    assert report["against"] is None


def test_the_closed_families_but_those_that_read_are_also_counted_together() -> None:
    report = accuracy_report(SET, SET.questions, answers(_0_colour="green", _0_word="DOG"), None)
    assert report["closed"] == {"n": 4, "correct": 3, "accuracy": 3 / 4, "ci95": list(wilson_interval(3, 4))}
    reading = [question for question in SET.questions if question.question.family == "word"]
    assert accuracy_report(SET, reading, answers(), None)["closed"] is None


def test_an_answer_is_right_by_the_rules_of_the_world() -> None:
    report = accuracy_report(SET, SET.questions, answers(_0_colour=" Red.", _0_count="two"), None)
    assert report["families"]["colour"]["correct"] == 2
    assert report["families"]["count"]["correct"] == 0


def test_what_training_cannot_have_shown_is_also_counted_apart_in_a_family_that_has_both() -> None:
    families = accuracy_report(SET, SET.questions, answers(_1_word="OWE"), None)["families"]
    assert (families["word"]["n"], families["word"]["correct"]) == (2, 1)
    assert (families["word"]["seen"]["n"], families["word"]["seen"]["correct"]) == (1, 1)
    assert (families["word"]["unseen"]["n"], families["word"]["unseen"]["correct"]) == (1, 0)
    assert "seen" not in families["colour"]
    assert "unseen" not in families["count"]


def test_of_what_is_read_the_texts_that_had_to_be_typed_are_counted_apart() -> None:
    def asked(number: int, form: str, seen: bool) -> AskedQuestion:
        return AskedQuestion(f"{number}-word", "0.jpg", Question("word", form, "?", "B"), seen)

    questions = [asked(0, "plain", True), asked(1, "letter", False), asked(2, "short", False), asked(3, "plain", False)]
    said = {"0-word": "B", "1-word": "B", "2-word": "B", "3-word": "D"}
    given = Answers(ENGINE, {name: Answer(text, (2,)) for name, text in said.items()})
    word = accuracy_report(SET, questions, given, None)["families"]["word"]
    assert (word["unseen"]["n"], word["unseen"]["correct"]) == (3, 2)
    assert (word["unseen_typed"]["n"], word["unseen_typed"]["correct"]) == (2, 1)
    assert "seen_typed" not in word  # there all were


def test_two_engines_with_the_same_answers_do_not_differ() -> None:
    against = accuracy_report(SET, SET.questions, answers(), answers(OTHER))["against"]
    assert against == {
        "engine": {"sha256": "b" * 64, "precision": "fp16", "target": "cpu", "tokenizer_sha256": "t" * 64},
        "equal_share": 1.0,
        "first_divergence": None,
        "only_this_right": 0,
        "only_other_right": 0,
        "p_value": 1.0,
    }


def test_the_first_divergence_is_the_place_of_the_first_token_that_differs_in_each_answer_that_does() -> None:
    this = answers(_0_colour="red", _0_word="CAT", _1_word="OWL", _1_colour="blue")
    other = answers(OTHER, _0_colour="rot", _0_word="CATS", _1_word="OW", _1_colour="glue")
    against = accuracy_report(SET, SET.questions, this, other)["against"]
    assert against["first_divergence"] == {"smallest": 0, "median": 1.5}  # of 1, 3 (its end), 2 (the other's), 0
    assert against["equal_share"] == pytest.approx(2 / 6)


def test_tokens_of_different_tokenizers_are_not_compared_but_texts_are() -> None:
    foreign = EngineIdentity("c" * 64, "fp32", "cpu", "u" * 64)
    against = accuracy_report(SET, SET.questions, answers(), answers(foreign, _0_colour="green"))["against"]
    assert against["first_divergence"] is None
    assert against["equal_share"] == pytest.approx(5 / 6)


def test_significance_counts_the_questions_that_one_engine_alone_got_right() -> None:
    this, other = answers(_0_colour="x", _0_word="y"), answers(OTHER, _0_word="z", _1_word="x", _1_existence="x")
    against = accuracy_report(SET, SET.questions, this, other)["against"]
    assert (against["only_this_right"], against["only_other_right"]) == (2, 1)
    assert against["p_value"] == 1.0
    worse = answers(OTHER, **{f"_{question.id.replace('-', '_')}": "x" for question in SET.questions})
    assert accuracy_report(SET, SET.questions, answers(), worse)["against"]["p_value"] == 2 / 2**6


def test_the_report_is_json() -> None:
    report = accuracy_report(SET, SET.questions, answers(), answers(OTHER, _0_colour="x"))
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_person_sees_a_table_with_seen_and_unseen_below_their_family() -> None:
    shown = as_text(accuracy_report(SET, SET.questions, answers(_1_word="OWE"), None))
    assert shown == "\n".join(
        [
            "engine    fp32 on cpu, SHA-256 aaaaaaaaaaaaaaaa",
            f"test set  version 1, SHA-256 {SET.sha256[:16]}, 6 questions, greedy",
            "",
            "family                       questions  right  accuracy  95 % interval",
            "colour                               2      2   100.0 %  34.2 to 100.0",
            "count                                1      1   100.0 %  20.7 to 100.0",
            "existence                            1      1   100.0 %  20.7 to 100.0",
            "word                                 2      1    50.0 %    9.5 to 90.5",
            "  seen                               1      1   100.0 %  20.7 to 100.0",
            "  unseen                             1      0     0.0 %    0.0 to 79.3",
            "all but reading, describing          4      4   100.0 %  51.0 to 100.0",
            "overall                              6      5    83.3 %   43.6 to 97.0",
        ]
    )


def test_a_person_sees_how_the_engines_differ() -> None:
    shown = as_text(accuracy_report(SET, SET.questions, answers(_0_colour="rot"), answers(OTHER)))
    assert shown.splitlines()[-7:] == [
        "against   fp16 on cpu, SHA-256 bbbbbbbbbbbbbbbb",
        "equal answers                           83.3 %",
        "first token that differs, smallest           1",
        "first token that differs, median             1",
        "right here alone                             0",
        "right there alone                            1",
        "p-value of that split (McNemar, exact)       1",
    ]


def test_a_part_of_the_set_is_called_so() -> None:
    shown = as_text(accuracy_report(SET, SET.questions[:2], answers(), None))
    assert f"SHA-256 {SET.sha256[:16]}, the first 2 of the 6 questions, greedy" in shown
