"""Greedy generation on a scripted session: which ids come, when steps run, and why an answer ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from trol_runtime.bundle import Bundle
from trol_runtime.engine import TOKENIZER_ENTRY
from trol_runtime.errors import UsageError
from trol_runtime.generation import Generation, collect_ids, greedy_ids
from trol_runtime.session import Session
from trol_runtime.tokenizer import TextTokenizer

VOCABULARY = 1000
EOS = 2


class ScriptedSession:
    """Answers decode with logits that choose the next scripted ids, int (steps, rows)."""

    def __init__(self, script: Sequence[Sequence[int]]) -> None:
        self.script = script
        self.fed: list[list[int]] = []

    def logits(self, step: int) -> np.ndarray:
        return np.eye(VOCABULARY, dtype=np.float32)[list(self.script[step])]

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        self.fed.append(token_ids.tolist())
        return self.logits(len(self.fed))


def scripted(*ids: int | tuple[int, ...]) -> ScriptedSession:
    return ScriptedSession([step if isinstance(step, tuple) else (step,) for step in ids])


def greedy(session: ScriptedSession, max_new_tokens: int) -> Any:
    return greedy_ids(cast(Session, session), session.logits(0), max_new_tokens)


# --- ids


def test_each_step_feeds_the_choice_before_it() -> None:
    session = scripted(5, 9, 7)
    assert [ids.tolist() for ids in greedy(session, 3)] == [[5], [9], [7]]
    assert session.fed == [[5], [9]]


def test_a_step_runs_when_its_id_is_asked_for_and_the_last_id_needs_none() -> None:
    session = scripted(5, 9)
    steps = greedy(session, 2)
    next(steps)
    assert session.fed == []
    next(steps)
    assert session.fed == [[5]]
    assert next(steps, None) is None
    assert session.fed == [[5]]


def test_all_rows_end_with_eos_and_then_pad() -> None:
    session = scripted((5, EOS, 8), (EOS, 6, 8), (4, 4, EOS), (9, 9, 9))
    found = collect_ids(greedy(session, 4), batch=3, eos_token_ids=(EOS,), pad_token_id=0)
    assert found.tolist() == [[5, EOS, 0], [EOS, 0, 0], [8, 8, EOS]]
    assert found.dtype == np.int64
    assert len(session.fed) == 2  # nothing runs once every row has ended


def test_rows_that_do_not_end_go_to_the_limit() -> None:
    found = collect_ids(greedy(scripted((5, EOS), (6, 6), (7, 7)), 3), 2, (EOS,), pad_token_id=EOS)
    assert found.tolist() == [[5, 6, 7], [EOS, EOS, EOS]]


def test_any_of_several_eos_ids_ends_a_row() -> None:
    found = collect_ids(greedy(scripted((5, 3), (EOS, 6)), 2), 2, (EOS, 3), pad_token_id=0)
    assert found.tolist() == [[5, EOS], [3, 0]]


def test_without_eos_ids_nothing_ends_a_row() -> None:
    assert collect_ids(greedy(scripted(EOS, EOS), 2), 1, (), pad_token_id=0).tolist() == [[EOS, EOS]]


# --- text


@pytest.fixture
def tokenizer(arch: Any, micro_engine: Callable[..., Path]) -> TextTokenizer:
    bundle = Bundle.open(micro_engine(arch))
    assert bundle.manifest.prompt is not None
    return TextTokenizer(bundle.read(TOKENIZER_ENTRY), bundle.manifest.prompt)


@pytest.fixture
def text_of(tokenizer: TextTokenizer) -> Callable[[str], list[int]]:
    """Text -> its ids, character by character, marks whole."""
    encode = tokenizer._tokenizer.token_to_id
    return lambda text: [cast(int, encode(piece)) for piece in text]


@pytest.fixture
def turn_end(tokenizer: TextTokenizer) -> int:
    return cast(int, tokenizer._tokenizer.token_to_id(tokenizer.template.turn_end))


def answer(tokenizer: TextTokenizer, ids: Sequence[int], max_new_tokens: int | None = None) -> Generation:
    session = scripted(*ids)
    return Generation(
        session=cast(Session, session),
        tokenizer=tokenizer,
        first_logits=session.logits(0),
        eos_token_ids=(EOS,),
        max_new_tokens=max_new_tokens or len(ids),
        prompt_tokens=3,
        image_tokens=0,
        timings_ms={},
    )


def test_an_answer_that_ends_with_eos(tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]) -> None:
    ids = [*text_of("cat"), EOS]
    made = answer(tokenizer, [*ids, 5, 5])
    assert "".join(made) == "cat"
    assert (made.finish_reason, made.token_ids) == ("eos", ids)


def test_an_answer_that_reaches_the_limit(tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]) -> None:
    made = answer(tokenizer, text_of("cats"), max_new_tokens=3)
    assert "".join(made) == "cat"
    assert (made.finish_reason, made.token_ids) == ("length", text_of("cat"))


def test_an_answer_that_ends_with_the_turn_end_mark_stops_there(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]], turn_end: int
) -> None:
    """The official code goes on to eos and cuts: the text is the same, the steps are saved."""
    made = answer(tokenizer, [*text_of("cat"), turn_end, *text_of("\n"[:0]), 5, EOS])
    assert "".join(made) == "cat"
    assert (made.finish_reason, made.token_ids) == ("stop", [*text_of("cat"), turn_end])


def test_the_mark_as_last_token_of_the_budget_is_a_stop(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]], turn_end: int
) -> None:
    made = answer(tokenizer, [*text_of("cat"), turn_end])
    assert "".join(made) == "cat"
    assert made.finish_reason == "stop"


def test_eos_as_first_token_is_an_empty_answer(tokenizer: TextTokenizer) -> None:
    made = answer(tokenizer, [EOS])
    assert list(made) == []
    assert (made.finish_reason, made.token_ids) == ("eos", [EOS])


def test_pieces_arrive_while_ids_are_still_to_come(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]
) -> None:
    made = answer(tokenizer, [*text_of("cat"), EOS])
    pieces = iter(made)
    assert next(pieces) == "c"
    assert (made.token_ids, made.finish_reason) == (text_of("c"), None)
    assert list(pieces) == ["a", "t"]
    assert made.timings_ms["decode"] > 0


def test_an_answer_is_iterated_once(tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]) -> None:
    made = answer(tokenizer, [*text_of("cat"), EOS])
    assert "".join(made) == "cat"
    with pytest.raises(UsageError, match="an answer can be iterated once"):
        next(iter(made))
