"""A packed row stands for as many prompts as it has questions: what each token sees, and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from short_recipe import short_recipe
from trol_benchmarks.world.questions import Question
from trol_export.tiny.lessons import Lessons
from trol_export.tiny.packing import IGNORED, Batch, Packer, Room

FIRST = Question("colour", "plain", "What colour is the star?", "red")
SECOND = Question("word", "letter", "Which word is printed?\nA. BOAT\nB. CAT\nAnswer with the letter.", "B")
THIRD = Question("description", "plain", "Describe the picture.", "a red star, a blue ring and the word BOAT")
ROWS = [[FIRST, SECOND, THIRD], [THIRD], [SECOND, FIRST]]
ROOM = Room(prompts=96, answers=32)

Seen = list[tuple[int, int]]  # (position, id)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(short_recipe())


@pytest.fixture(params=["with a picture", "without"])
def packer(request: pytest.FixtureRequest, lessons: Lessons) -> Packer:
    return lessons.packer if request.param == "with a picture" else lessons.text_packer


@pytest.fixture
def batch(packer: Packer) -> Batch:
    return packer.pack(ROWS, ROOM)


def conversation(packer: Packer, question: Question) -> tuple[list[int], list[int]]:
    """The ids of a prompt and its answer as an engine has them."""
    crops = [1] if packer.image_tokens else []
    prompt = packer.tokenizer.encode_prompt(question.text, crops, packer.image_tokens)
    return prompt[0].tolist(), [*packer.tokenizer.encode_text(question.answer), packer.tokenizer.turn_end_id]


def seen_by(batch: Batch, row: int, token: int) -> Seen:
    """What a token sees, by position."""
    seen = batch.sees[row, 0, token]
    return sorted(zip(batch.positions[row, seen].tolist(), batch.ids[row, seen].tolist(), strict=True))


def asked(batch: Batch, row: int, number: int) -> list[int]:
    """The tokens of a row after which the answer to a question is asked for, in order."""
    return torch.nonzero((batch.questions[row] == number) & (batch.targets[row] != IGNORED)).flatten().tolist()


def all_asked(rows: Sequence[Sequence[Question]]) -> Iterator[tuple[int, int, Question]]:
    for row, questions in enumerate(rows):
        for number, question in enumerate(questions):
            yield row, number, question


def filling(batch: Batch, rows: Sequence[Sequence[Question]], packer: Packer) -> torch.Tensor:
    """bool (b, t): tokens that belong to no prompt and no answer."""
    found = torch.ones_like(batch.ids, dtype=torch.bool)
    for row, questions in enumerate(rows):
        pairs = [conversation(packer, question) for question in questions]
        prompts = batch.shared + sum(len(prompt) - batch.shared for prompt, _ in pairs)
        found[row, :prompts] = False
        answers = sum(len(answer) - 1 for _, answer in pairs)
        found[row, batch.prompt_tokens : batch.prompt_tokens + answers] = False
    return found


# What a token sees


def test_every_answer_token_sees_its_own_prompt_and_answer_so_far_and_nothing_else(
    packer: Packer, batch: Batch
) -> None:
    for row, number, question in all_asked(ROWS):
        prompt, answer = conversation(packer, question)
        tokens = asked(batch, row, number)
        assert len(tokens) == len(answer)
        for known, token in enumerate(tokens):
            assert seen_by(batch, row, token) == list(enumerate(prompt + answer[:known]))


def test_every_prompt_token_sees_its_own_prompt_so_far_and_nothing_else(packer: Packer, batch: Batch) -> None:
    shared = batch.shared
    for row, questions in enumerate(ROWS):
        for token in range(shared):
            prompt, _ = conversation(packer, questions[0])
            assert seen_by(batch, row, token) == list(enumerate(prompt[: token + 1]))
        start = shared
        for question in questions:
            prompt, _ = conversation(packer, question)
            for length in range(shared + 1, len(prompt) + 1):
                assert seen_by(batch, row, start + length - shared - 1) == list(enumerate(prompt[:length]))
            start += len(prompt) - shared


def test_the_beginning_that_prompts_share_ends_with_the_picture(lessons: Lessons) -> None:
    prompt, _ = conversation(lessons.packer, FIRST)
    image_id = lessons.config.image_token_id
    assert lessons.packer.shared == prompt[: len(lessons.packer.shared)]
    assert lessons.packer.shared[-1] == image_id
    assert image_id not in prompt[len(lessons.packer.shared) :]
    assert lessons.packer.shared.count(image_id) == lessons.config.vision.tokens_per_crop


def test_without_a_picture_it_ends_where_the_question_begins(lessons: Lessons) -> None:
    packer = lessons.text_packer
    prompt, _ = conversation(packer, FIRST)
    assert prompt[len(packer.shared) :][: len(["What", "colour"])] == packer.tokenizer.encode_text("What colour")


def test_filling_is_seen_by_filling_alone_and_nothing_is_asked_of_it(packer: Packer, batch: Batch) -> None:
    fill = filling(batch, ROWS, packer)
    assert fill.any(1).all()
    assert (batch.questions[fill] == -1).all()
    for row in range(len(ROWS)):
        assert not batch.sees[row, 0, ~fill[row]][:, fill[row]].any()
    assert (batch.targets[fill] == IGNORED).all()
    assert (batch.weights[fill] == 0).all()


def test_every_token_sees_at_least_itself(batch: Batch) -> None:
    # Attention of a token that sees nothing is 0 / 0.
    assert batch.sees.diagonal(dim1=2, dim2=3).all()


def test_no_token_sees_a_later_one(batch: Batch) -> None:
    # The beginning is attended to as a causal square, and answers follow all prompts: `teacher_forcing` relies on both.
    assert not batch.sees.triu(1).any()
    assert batch.sees[:, 0, : batch.shared, : batch.shared].equal(
        torch.ones(len(ROWS), batch.shared, batch.shared, dtype=torch.bool).tril()
    )


# What is asked of it


def test_the_answer_is_asked_for_token_by_token_up_to_the_end_of_the_turn(packer: Packer, batch: Batch) -> None:
    for row, number, question in all_asked(ROWS):
        _, answer = conversation(packer, question)
        assert batch.targets[row, asked(batch, row, number)].tolist() == answer
        assert answer[-1] == packer.tokenizer.turn_end_id
        assert packer.tokenizer.decode(answer) == question.answer


def test_nothing_but_answers_is_asked_for(batch: Batch) -> None:
    assert (batch.questions[batch.targets != IGNORED] >= 0).all()
    assert ((batch.weights > 0) == (batch.targets != IGNORED)).all()


def test_an_answer_of_four_times_the_tokens_weighs_twice_as_much(packer: Packer, batch: Batch) -> None:
    for row, number, question in all_asked(ROWS):
        _, answer = conversation(packer, question)
        weights = batch.weights[row, asked(batch, row, number)]
        assert weights.sum().item() == pytest.approx(len(answer) ** 0.5)
        assert weights.max() == weights.min()


# Room


def shapes(batch: Batch) -> list[torch.Size]:
    return [x.shape for x in (batch.ids, batch.positions, batch.sees, batch.targets, batch.weights, batch.questions)]


def test_shapes_depend_on_the_room_and_on_the_number_of_rows_alone(packer: Packer) -> None:
    nothing: list[list[Question]] = [[], [], []]
    one, other, empty = (packer.pack(rows, ROOM) for rows in (ROWS, [[FIRST]] * 3, nothing))
    tokens = len(packer.shared) + sum(ROOM)
    assert one.ids.shape == (3, tokens)
    assert one.sees.shape == (3, 1, tokens, tokens)
    assert one.prompt_tokens == len(packer.shared) + ROOM.prompts
    assert shapes(one) == shapes(other) == shapes(empty)


def room_of(packer: Packer, *questions: Question) -> Room:
    """Just enough for these."""
    pairs = [conversation(packer, question) for question in questions]
    prompts = sum(len(prompt) - len(packer.shared) for prompt, _ in pairs)
    return Room(prompts, sum(len(answer) - 1 for _, answer in pairs))


def held(batch: Batch, row: int = 0) -> list[int]:
    return [number for number in torch.unique(batch.questions[row]).tolist() if number >= 0]


def test_what_just_fits_is_asked(packer: Packer) -> None:
    batch = packer.pack(ROWS[:1], room_of(packer, FIRST, SECOND, THIRD))
    assert held(batch) == [0, 1, 2]
    assert not filling(batch, ROWS[:1], packer).any()


@pytest.mark.parametrize("part", Room._fields)
def test_one_token_too_few_leaves_a_question_out(packer: Packer, part: str) -> None:
    room = room_of(packer, FIRST, SECOND)
    batch = packer.pack([[FIRST, SECOND]], room._replace(**{part: getattr(room, part) - 1}))
    assert held(batch) == [0]
    assert batch.targets[0, asked(batch, 0, 0)].tolist() == conversation(packer, FIRST)[1]


def test_later_questions_that_fit_keep_their_numbers(packer: Packer) -> None:
    # Room for all prompts, and for all answers but the longest.
    room = room_of(packer, FIRST, THIRD, SECOND)._replace(answers=room_of(packer, FIRST, SECOND).answers)
    batch = packer.pack([[FIRST, THIRD, SECOND]], room)
    assert held(batch) == [0, 2]
    assert batch.targets[0, asked(batch, 0, 2)].tolist() == conversation(packer, SECOND)[1]


def test_a_row_without_questions_asks_for_nothing(packer: Packer) -> None:
    batch = packer.pack([[FIRST], []], ROOM)
    assert held(batch, row=1) == []
    assert batch.ids[1, : batch.shared].tolist() == packer.shared
