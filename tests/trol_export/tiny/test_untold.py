"""Pairs kept from training: where one half is, answers and labels are not said to be other than the other half."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from short_recipe import short_recipe
from trol_benchmarks.world.questions import Question
from trol_benchmarks.world.splits import PAIRS, is_unseen_pair
from trol_export.tiny.lessons import Lessons
from trol_export.tiny.packing import IGNORED, Room
from trol_export.tiny.untold import KEPT_PAIRS, partners

ROOM = Room(prompts=200, answers=40)
SHORT = "\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(short_recipe())


def untold(lessons: Lessons, *asked: Question) -> list[tuple[str, set[str]]]:
    """Every token of the answers, as a word, with the words that it is not said to differ from."""
    batch = lessons.packer.pack([asked], ROOM)
    found = lessons.kept_pairs.untold_tokens(batch, [asked])
    words = {number: piece.replace("▁", "") for piece, number in lessons.tokenizer_json["model"]["vocab"].items()}
    targets = batch.targets[batch.targets != IGNORED].tolist()
    return [
        (words[target], {words[number] for number in row.nonzero().flatten().tolist()})
        for target, row in zip(targets, found, strict=True)
    ]


def test_kept_pairs_are_those_that_training_does_not_show() -> None:
    assert set(KEPT_PAIRS) == {pair for pair in PAIRS if is_unseen_pair(*pair)}
    assert ("red", "heart") in KEPT_PAIRS


def test_partners_are_the_other_halves_both_ways() -> None:
    names = sorted({name for pair in KEPT_PAIRS for name in pair})
    found = partners({name: number for number, name in enumerate(names)}, len(names))
    assert found.equal(found.T)
    assert int(found.sum()) == 2 * len(KEPT_PAIRS)
    assert all(found[names.index(colour), names.index(shape)] for colour, shape in KEPT_PAIRS)


@pytest.mark.parametrize("suffix", ["", SHORT])
@pytest.mark.parametrize(
    ("family", "text", "answer", "kept"),
    [
        ("shape", "Which shape is red?", "star", {"heart", "triangle"}),
        ("colour", "What colour is the heart?", "blue", {"red", "black"}),
        ("colour", "What colour is the word?", "red", set()),
    ],
)
def test_an_answer_is_not_told_from_what_would_make_a_kept_pair_with_the_name_in_the_question(
    lessons: Lessons, family: str, text: str, answer: str, kept: set[str], suffix: str
) -> None:
    (first, of_first), *_ = untold(lessons, Question(family, "plain", text + suffix, answer))
    assert (first, of_first) == (answer, kept)


def test_of_a_described_picture_the_name_in_the_question_counts(lessons: Lessons) -> None:
    described = "There are two objects: a blue star and a white ring.\nWhich shape is blue?"
    assert untold(lessons, Question("shape", "plain", described, "star"))[0] == ("star", {"moon"})


def described(lessons: Lessons, text: str) -> list[tuple[str, set[str]]]:
    return untold(lessons, Question("description", "plain", "What do you see?", text))


def test_a_description_is_not_told_from_what_would_make_one_with_the_name_beside_it(lessons: Lessons) -> None:
    found = dict(described(lessons, "There are two objects: a red star and a blue ring."))
    assert found["star"] == {"heart", "triangle"}
    assert found["ring"] == {"moon"}
    assert found["red"] == {"yellow", "purple"}
    assert found["blue"] == {"black", "green"}
    assert found["There"] == found[":"] == found["and"] == set()


def test_an_article_is_not_told_from_that_of_a_colour_that_would_make_one(lessons: Lessons) -> None:
    *_, article, colour, shape, _, _ = described(lessons, "There is one object: a red cross.")
    assert article == ("a", {"orange", "an"})
    assert colour == ("red", {"orange", "an"})
    assert shape == ("cross", {"heart", "triangle"})


def test_what_is_no_thing_of_a_description_is_told_from_everything(lessons: Lessons) -> None:
    found = described(lessons, "The word CAT is printed in red. A bar chart with two bars: red and green.")
    assert not any(kept for _, kept in found[:6])
    assert [kept for word, kept in found if word in ("red", "green", "bars", "and")] == [set()] * 5


@pytest.mark.parametrize(
    ("family", "form", "answer"), [("count", "plain", "2"), ("existence", "short", "no"), ("shape", "letter", "B")]
)
def test_other_answers_are_told_from_everything(lessons: Lessons, family: str, form: str, answer: str) -> None:
    options = ("ring", "star") if form == "letter" else ()
    text = "\n".join(["Is it red?", *(f"{letter}. {name}" for letter, name in zip("AB", options, strict=False))])
    assert not any(kept for _, kept in untold(lessons, Question(family, form, text, answer, options)))


def test_no_answer_of_the_training_is_among_them(lessons: Lessons) -> None:
    for phase in range(len(lessons.recipe.phases)):
        lesson = lessons.prepare(phase, 0)
        if lesson.batch is not None:
            assert lesson.untold is not None
            targets = lesson.batch.targets[lesson.batch.targets != IGNORED]
            assert not lesson.untold[torch.arange(len(targets)), targets].any()


def test_every_question_of_every_row_has_its_own(lessons: Lessons) -> None:
    red = Question("shape", "plain", "Which shape is red?", "star")
    blue = Question("shape", "plain", "Which shape is blue?", "ring")
    rows: Sequence[Sequence[Question]] = [[red, blue], [], [blue]]
    batch = lessons.packer.pack(rows, ROOM)
    found = lessons.kept_pairs.untold_tokens(batch, rows)
    firsts = found[(batch.targets[batch.targets != IGNORED] != lessons.packer.tokenizer.turn_end_id)]
    heart, moon = (lessons.tokenizer_json["model"]["vocab"][name] for name in ("heart", "moon"))
    assert firsts[:, heart].tolist() == [True, False, False]
    assert firsts[:, moon].tolist() == [False, True, True]
