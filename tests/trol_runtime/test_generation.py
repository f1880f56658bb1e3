"""Generation on a scripted session: which ids come, when steps run, and why an answer ended."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from trol_runtime.bundle import Bundle
from trol_runtime.completion import Completion
from trol_runtime.engine import TOKENIZER_ENTRY
from trol_runtime.errors import UsageError
from trol_runtime.generation import Generation, choose_ids, collect, search_ids
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.logits_processing import log_softmax
from trol_runtime.session import Rows
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


def chosen(session: Any, max_new_tokens: int, said: np.ndarray | None = None, **options: Any) -> Any:
    """The steps behind the session's first logits; options: of GenerationConfig, whose min_new_tokens holds off EOS."""
    logits = session.logits(0)
    return choose_ids(
        cast(Rows, session),
        logits,
        GenerationConfig(**options),
        max_new_tokens=max_new_tokens,
        held_off_ids=(EOS,),
        said=np.zeros((len(logits), 0), np.int64) if said is None else said,
    )


# --- ids


def test_each_step_feeds_the_choice_before_it() -> None:
    session = scripted(5, 9, 7)
    assert [ids.tolist() for ids, _ in chosen(session, 3)] == [[5], [9], [7]]
    assert session.fed == [[5], [9]]


def test_a_step_runs_when_its_id_is_asked_for_and_the_last_id_needs_none() -> None:
    session = scripted(5, 9)
    steps = chosen(session, 2)
    next(steps)
    assert session.fed == []
    next(steps)
    assert session.fed == [[5]]
    assert next(steps, None) is None
    assert session.fed == [[5]]


def completed(session: ScriptedSession, max_new_tokens: int, eos: Sequence[int], pad: int = 0) -> Completion:
    return collect(chosen(session, max_new_tokens), len(session.script[0]), eos, pad)


def test_all_rows_end_with_eos_and_then_pad() -> None:
    session = scripted((5, EOS, 8), (EOS, 6, 8), (4, 4, EOS), (9, 9, 9))
    found = completed(session, 4, eos=(EOS,)).token_ids
    assert found.tolist() == [[5, EOS, 0], [EOS, 0, 0], [8, 8, EOS]]
    assert found.dtype == np.int64
    assert len(session.fed) == 2  # nothing runs once every row has ended


def test_rows_that_do_not_end_go_to_the_limit() -> None:
    found = completed(scripted((5, EOS), (6, 6), (7, 7)), 3, eos=(EOS,), pad=EOS)
    assert found.token_ids.tolist() == [[5, 6, 7], [EOS, EOS, EOS]]


def test_any_of_several_eos_ids_ends_a_row() -> None:
    found = completed(scripted((5, 3), (EOS, 6)), 2, eos=(EOS, 3))
    assert found.token_ids.tolist() == [[5, EOS], [3, 0]]


def test_without_eos_ids_nothing_ends_a_row() -> None:
    assert completed(scripted(EOS, EOS), 2, eos=()).token_ids.tolist() == [[EOS, EOS]]


def test_a_step_tells_the_log_probability_of_its_choice() -> None:
    """By the model's own logits: 1 for what is scripted, 0 for the 999 others."""
    expected = 1 - np.log(np.e + VOCABULARY - 1)
    for _, logprobs in chosen(scripted((5, 7), (6, 8)), 2):
        assert logprobs.dtype == np.float32
        np.testing.assert_allclose(logprobs, [expected] * 2, rtol=1e-6)


def test_the_log_probabilities_of_a_row_end_with_the_row_and_its_score_is_their_mean() -> None:
    made = completed(scripted((5, EOS), (6, 6), (EOS, 7)), 3, eos=(EOS,))
    each = 1 - np.log(np.e + VOCABULARY - 1)
    np.testing.assert_allclose(made.logprobs, each * np.array([[1, 1, 1], [1, 0, 0]]), rtol=1e-6)
    np.testing.assert_allclose(made.scores, each * np.ones(2), rtol=1e-6)


class FixedSession(ScriptedSession):
    """Answers every step with the same logits, float32 (rows, vocab), whatever was fed."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__([])
        self.fixed = logits.astype(np.float32)

    def logits(self, step: int) -> np.ndarray:
        return self.fixed.copy()


def ids_of(steps: Any) -> list[list[int]]:
    """(steps, rows)"""
    return [ids.tolist() for ids, _ in steps]


def test_a_repetition_penalty_looks_at_the_prompt_and_at_the_answer_so_far() -> None:
    """Positive scores are divided by it: 8 / 2 < 5, 5 / 2 < 4.5, ..."""
    session = FixedSession(np.array([[0, 8, 5, 4.5]]))
    assert ids_of(chosen(session, 4, repetition_penalty=2.0)) == [[1], [2], [3], [1]]
    said = np.array([[1, 7, -1]])  # ids that cannot be chosen, and what pads shorter prompts, are passed over
    assert ids_of(chosen(session, 3, said, repetition_penalty=2.0)) == [[2], [3], [1]]


def test_log_probabilities_know_no_penalty() -> None:
    logits = np.array([[0, 8, 5, 4.5]], np.float32)
    steps = chosen(FixedSession(logits), 3, repetition_penalty=2.0)
    expected = log_softmax(logits)[0, [1, 2, 3]]
    np.testing.assert_array_equal(np.concatenate([logprobs for _, logprobs in steps]), expected)


def test_rows_are_penalised_for_what_they_said_themselves() -> None:
    session = FixedSession(np.array([[0, 8, 5, 1], [0, 5, 8, 1]]))
    assert ids_of(chosen(session, 2, repetition_penalty=2.0)) == [[1, 2], [2, 1]]


def test_eos_does_not_come_before_the_least_number_of_tokens() -> None:
    logits = np.zeros((1, 9))
    logits[0, [EOS, 4]] = 5, 1
    assert ids_of(chosen(FixedSession(logits), 4, min_new_tokens=2)) == [[4], [4], [EOS], [EOS]]


def test_the_same_seed_draws_the_same_ids_and_another_seed_others() -> None:
    session = FixedSession(np.zeros((2, VOCABULARY)))

    def drawn(seed: int) -> list[list[int]]:
        return ids_of(chosen(session, 8, temperature=1.0, seed=seed))

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert len({row for row in map(tuple, zip(*drawn(3), strict=True))}) == 2  # every row a stream of its own


def test_what_the_sampling_options_leave_out_is_never_drawn() -> None:
    session = FixedSession(np.array([[3.0, 2.9, 2.8, 2.7]] * 3))
    drawn = {row for ids in ids_of(chosen(session, 50, top_k=2, seed=0)) for row in ids}
    assert drawn == {0, 1}


def test_a_search_comes_in_the_form_of_steps() -> None:
    session = BeamSession()
    steps = list(
        search_ids(
            cast(Rows, session),
            session.logits(0),
            GenerationConfig(num_beams=2),
            max_new_tokens=3,
            eos_token_ids=(EOS,),
            held_off_ids=(EOS,),
            pad_token_id=0,
            said=np.zeros((1, 0), np.int64),
        )
    )
    assert [ids.shape for ids, _ in steps] == [(1,)] * len(steps)
    assert [ids.tolist() for ids, _ in steps] == [[5], [7], [EOS]]
    assert all(logprobs.dtype == np.float32 for _, logprobs in steps)


class BeamSession(ScriptedSession):
    """5, 7, EOS whatever the beam."""

    def __init__(self) -> None:
        super().__init__([(5,), (7, 7), (EOS, EOS)])

    def repeat(self, times: int) -> None:
        assert times == 2

    def reorder(self, sources: np.ndarray) -> None:
        assert sources.shape == (2,)


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
def byte_ids(tokenizer: TextTokenizer) -> Callable[[str], list[int]]:
    """Text -> the ids of its bytes, from which a character comes only when it is known that no byte follows."""
    encode = tokenizer._tokenizer.token_to_id
    return lambda text: [cast(int, encode(f"<0x{byte:02X}>")) for byte in text.encode()]


@pytest.fixture
def turn_end(tokenizer: TextTokenizer) -> int:
    return cast(int, tokenizer._tokenizer.token_to_id(tokenizer.template.turn_end))


def answer(
    tokenizer: TextTokenizer, ids: Sequence[int], max_new_tokens: int | None = None, stop: tuple[str, ...] = ()
) -> Generation:
    return generation(scripted(*ids), tokenizer, max_new_tokens or len(ids), stop)


def generation(
    session: ScriptedSession, tokenizer: TextTokenizer, max_new_tokens: int, stop: tuple[str, ...]
) -> Generation:
    return Generation(
        steps=chosen(session, max_new_tokens),
        tokenizer=tokenizer,
        eos_token_ids=(EOS,),
        config=GenerationConfig(stop=stop),
        max_new_tokens=max_new_tokens,
        prompt_tokens=3,
        image_tokens=0,
        reused_tokens=0,
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
    made = answer(tokenizer, [*text_of("cat"), turn_end, 5, EOS])
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


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]
) -> None:
    """Across the borders of tokens, here one per character; what follows it is not generated."""
    made = answer(tokenizer, [*text_of("cats"), *text_of("and dogs".replace(" ", "")), EOS], stop=("xyz", "san"))
    assert "".join(made) == "cat"
    assert (made.text, made.finish_reason, made.token_ids) == ("cat", "stop", text_of("catsan"))


def test_what_might_become_a_stop_text_is_held_back_until_it_is_none(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]
) -> None:
    made = answer(tokenizer, [*text_of("cats"), EOS], stop=("cap", "tsz"))
    assert list(made) == ["ca", "ts"]
    assert made.finish_reason == "eos"


@pytest.mark.parametrize("ended_by", ["the budget", "eos"])
def test_a_stop_text_that_is_complete_with_the_last_id_is_the_reason_all_the_same(
    tokenizer: TextTokenizer,
    text_of: Callable[[str], list[int]],
    byte_ids: Callable[[str], list[int]],
    ended_by: str,
) -> None:
    """Its last character may be known only when no further id comes: phi3 waits for the end of a run of bytes."""
    ids = [*text_of("cat"), *byte_ids("é"), *([EOS] if ended_by == "eos" else [])]
    made = answer(tokenizer, ids, stop=("é",))
    assert "".join(made) == made.text == "cat"
    assert made.finish_reason == "stop"


def test_a_stop_text_that_does_not_come_is_no_reason(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]], byte_ids: Callable[[str], list[int]]
) -> None:
    for end, reason in (([], "length"), ([EOS], "eos")):
        made = answer(tokenizer, [*text_of("cat"), *byte_ids("é"), *text_of("s"), *end], stop=("x", "ést", "cats"))
        assert "".join(made) == "caté" + "s"
        assert made.finish_reason == reason


def test_an_answer_keeps_its_text_and_a_log_probability_per_id(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]
) -> None:
    made = answer(tokenizer, [*text_of("cat"), EOS])
    assert "".join(made) == made.text == "cat"
    assert made.logprobs == pytest.approx([1 - np.log(np.e + VOCABULARY - 1)] * 4)


def test_a_stopped_answer_keeps_what_has_come_and_takes_no_further_step(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]
) -> None:
    made = answer(tokenizer, [*text_of("cats"), EOS])
    pieces = iter(made)
    assert [next(pieces), next(pieces)] == ["c", "a"]
    made.stop()
    assert list(pieces) == []
    assert (made.text, made.finish_reason, made.token_ids) == ("ca", "stop", text_of("ca"))


def test_an_answer_stopped_before_it_began_stays_empty(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]
) -> None:
    """Its session may belong to another answer by now."""
    made = answer(tokenizer, [*text_of("cats"), EOS])
    made.stop()
    assert list(made) == []
    assert (made.text, made.finish_reason, made.token_ids) == ("", "stop", [])


def test_stopping_an_answer_that_has_ended_changes_nothing(
    tokenizer: TextTokenizer, text_of: Callable[[str], list[int]]
) -> None:
    made = answer(tokenizer, [*text_of("cat"), EOS])
    assert "".join(made) == "cat"
    made.stop()
    assert made.finish_reason == "eos"


# --- what an answer holds on to


def let_go(made: Generation, session: Callable[[], object]) -> bool:
    """Whether nothing but the answer was left to hold the session, and it does not."""
    gc.collect()
    return made.finish_reason is not None and session() is None


def half_read(made: Generation) -> None:
    pieces = iter(made)
    next(pieces)
    made.stop()


@pytest.mark.parametrize(
    ("ids", "stop", "read"),
    [
        pytest.param("cats", (), list, id="length"),
        pytest.param("ca\0s", (), list, id="eos"),
        pytest.param("cats", ("t",), list, id="a stop text"),
        pytest.param("cats", (), half_read, id="stopped"),
        pytest.param("cats", (), Generation.stop, id="stopped before it began"),
    ],
)
def test_an_answer_that_is_over_lets_its_session_go(
    tokenizer: TextTokenizer,
    text_of: Callable[[str], list[int]],
    ids: str,
    stop: tuple[str, ...],
    read: Callable[[Generation], object],
) -> None:
    """The cache in it may take gigabytes, and answers are kept for their text."""
    session = scripted(*(EOS if letter == "\0" else text_of(letter)[0] for letter in ids))
    made = generation(session, tokenizer, max_new_tokens=4, stop=stop)
    seen = weakref.ref(session)
    del session
    assert seen() is not None
    read(made)
    assert let_go(made, seen)
