"""Sessions that keep their prefix: whatever they reuse, they give what a fresh session gives for the same tokens."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MICRO_MAX_SEQ
from labelled_prompts import Labels, WatchedBackend, batch, fresh_logits, shared, shown, text, watched_session
from small_prompts import assert_close, assert_same_choice, picture, text_ids
from trol_runtime import TroL, kv_cache
from trol_runtime.errors import LimitError, NumericError, UsageError
from trol_runtime.kv_cache import KVCache
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import uses_long_factors
from trol_runtime.session import Backend, Session

READ_AGAIN = "the prompt is read again from its first token: it crosses 96 tokens, where the rotary factors change"


@pytest.fixture
def session(model: TroL) -> Session:
    return model.new_session(keep_prefix=True)


@pytest.fixture
def config(model: TroL) -> ModelConfig:
    return model.config


def prefill(session: Session, config: ModelConfig, *rows: Labels) -> np.ndarray:
    return session.prefill(**batch(config, rows))


def extend(session: Session, config: ModelConfig, *rows: Labels) -> np.ndarray:
    return session.extend(**batch(config, rows))


# --- random conversations


class Talk:
    """A session, what it should hold, and the check that it does."""

    def __init__(self, model: TroL, session: Session) -> None:
        self.model, self.session = model, session
        self.prompts: list[Labels] = []
        self.decoded: list[list[int]] = []  # (steps, rows)
        self.beams = 1

    def copy(self, session: Session) -> Talk:
        copy = Talk(self.model, session)
        copy.prompts, copy.decoded, copy.beams = list(self.prompts), list(self.decoded), self.beams
        return copy

    def possible(self) -> list[str]:
        calls = ["prefill"]
        if self.prompts:
            calls += ["decode", "drop_prefix"]
        if self.session.keeps_prefix:
            calls += ["fork"] + (["extend"] if self.prompts and self.beams == 1 else [])
        if self.beams == 1 and len(self.prompts) == 1:
            calls += ["search"]
        return calls

    def prefill(self, rows: list[Labels]) -> None:
        self._read(rows, self.session.prefill, rows)

    def extend(self, parts: list[Labels]) -> None:
        decoded = list(map(list, zip(*self.decoded, strict=True))) or [[] for _ in parts]
        rows = [[*held, *said, *part] for held, said, part in zip(self.prompts, decoded, parts, strict=True)]
        self._read(rows, self.session.extend, parts)

    def decode(self, seed: int) -> None:
        ids = text_ids(self.model.config, len(self.prompts) * self.beams, seed)[0]
        found = self.session.decode(ids)
        self.decoded.append(ids.tolist())
        self.check(found)

    def search(self, seed: int) -> None:
        """Two beams, which swap places once."""
        self.session.repeat(2)
        self.beams, self.decoded = 2, [[ids[0]] * 2 for ids in self.decoded]
        self.decode(seed)
        self.session.reorder(np.array([1, 0]))
        self.decoded[-1].reverse()
        self.decode(seed + 1)

    def drop_prefix(self) -> None:
        self.session.drop_prefix()

    def check(self, logits: np.ndarray) -> None:
        expected = fresh_logits(self.model, self.prompts * self.beams, self.decoded)
        assert_close(logits, expected)
        assert_same_choice(logits, expected)
        steps = len(self.decoded)
        assert self.session.lengths.tolist() == [len(row) + steps for row in self.prompts] * self.beams

    def _read(self, rows: list[Labels], call: Callable[..., np.ndarray], given: list[Labels]) -> None:
        reused, read_again = self._reuse(rows)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logits = call(**batch(self.model.config, given))
        assert [str(warning.message) for warning in caught] == [READ_AGAIN] * read_again
        assert self.session.reused.tolist() == reused
        self.prompts, self.decoded, self.beams = rows, [], 1
        self.check(logits)

    def _reuse(self, rows: list[Labels]) -> tuple[list[int], int]:
        """How much of each row the session has read, and how many rows it must read again all the same."""
        if not self.session.keeps_prefix or len(rows) != len(self.prompts):
            return [0] * len(rows), 0
        rope = self.model.config.decoder.rope
        reused, read_again = [], 0
        for held, row in zip(self.prompts, rows, strict=True):
            tokens = min(shared(held, row), len(row) - 1) if len(held) > 1 else 0
            if tokens and uses_long_factors(rope, len(held)) != uses_long_factors(rope, len(row)):
                tokens, read_again = 0, read_again + 1
            reused.append(tokens)
        return reused, read_again


@st.composite
def labels(draw: st.DrawFn, config: ModelConfig) -> Labels:
    """Text, with a picture in one of three; long ones bring phi3 across the 96 tokens at which its tables change."""
    parts = text(config, draw(st.sampled_from([1, 2, 5, 20, 60])), draw(st.integers(0, 2)))
    return parts + draw(st.sampled_from([[], [], shown(config, 1), shown(config, 2)]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_order_of_calls_gives_what_fresh_sessions_give(model: TroL, data: st.DataObject) -> None:
    config = model.config
    chunk = data.draw(st.sampled_from([None, None, 7]), "chunk")
    talks = [Talk(model, model.new_session(keep_prefix=True, prefill_chunk=chunk))]
    for _ in range(data.draw(st.integers(2, 7), "calls")):
        talk = data.draw(st.sampled_from(talks), "session")
        call = data.draw(st.sampled_from(talk.possible()), "call")
        if call == "prefill":
            rows = []
            for row in range(data.draw(st.sampled_from([1, 1, 2]), "rows")):
                held = talk.prompts[row] if row < len(talk.prompts) else []
                begin = held[: data.draw(st.integers(0, len(held)), "shared")]
                rows.append(begin + data.draw(labels(config)))
            talk.prefill(rows)
        elif call == "extend":
            talk.extend([data.draw(labels(config)) for _ in talk.prompts])
        elif call == "fork":
            talks.append(talk.copy(talk.session.fork()))
        elif call == "drop_prefix":
            talk.drop_prefix()
        else:
            getattr(talk, call)(data.draw(st.integers(0, 9), "seed"))
    for talk in talks:  # what the others did since has not touched it
        if talk.prompts:
            talk.decode(seed=5)


# --- what is reused


def test_a_second_question_about_the_same_picture_reads_its_own_tokens_alone(model: TroL, config: ModelConfig) -> None:
    session, backend = watched_session(model)
    about = text(config, 5) + shown(config, 1)
    prefill(session, config, about + text(config, 9, seed=1))
    session.decode(np.array([5]))
    backend.taken()
    question = about + text(config, 4, seed=2)
    assert_close(prefill(session, config, question), fresh_logits(model, [question]))
    assert (session.reused.tolist(), backend.taken()) == ([len(about)], [("extend", 4)])


def test_the_same_prompt_again_reads_its_last_token_again(model: TroL, config: ModelConfig) -> None:
    """The logits come from it; it is run twice, though it comes alone."""
    session, backend = watched_session(model)
    prompt = text(config, 30)
    first = prefill(session, config, prompt)
    backend.taken()
    assert_close(prefill(session, config, prompt), first)
    assert (session.reused.tolist(), backend.taken()) == ([29], [("extend", 1)])


def test_the_beginning_of_a_prompt_is_reused_too(model: TroL, config: ModelConfig, session: Session) -> None:
    prompt = text(config, 30)
    prefill(session, config, prompt)
    assert_close(prefill(session, config, prompt[:12]), fresh_logits(model, [prompt[:12]]))
    assert session.reused.tolist() == [11]
    assert_close(prefill(session, config, prompt), fresh_logits(model, [prompt]))
    assert session.reused.tolist() == [12]  # the rest was forgotten when the shorter prompt was read


def test_another_picture_is_not_taken_for_the_same_though_its_ids_are_equal(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    prompts = [text(config, 5) + shown(config, number) + text(config, 9, seed=1) for number in (1, 2)]
    ids = [batch(config, [prompt])["input_ids"] for prompt in prompts]
    np.testing.assert_array_equal(*ids)
    prefill(session, config, prompts[0])
    assert_close(prefill(session, config, prompts[1]), fresh_logits(model, [prompts[1]]))
    assert session.reused.tolist() == [5]


def test_a_picture_that_differs_in_its_last_token_is_reused_up_to_there(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    same, other = shown(config, 1), [*shown(config, 1)[:-1], (2, 15)]
    prefill(session, config, same + text(config, 9))
    found = prefill(session, config, other + text(config, 9))
    assert session.reused.tolist() == [15]
    assert_close(found, fresh_logits(model, [other + text(config, 9)]))


def test_a_caller_may_change_its_arrays_afterwards(model: TroL, config: ModelConfig, session: Session) -> None:
    prompt = text(config, 5) + shown(config, 1) + text(config, 9, seed=1)
    arrays = batch(config, [prompt])
    session.prefill(**arrays)
    for array in arrays.values():
        array[...] = 1
    assert_close(prefill(session, config, prompt), fresh_logits(model, [prompt]))
    assert session.reused.tolist() == [len(prompt) - 1]


def test_each_row_of_a_batch_reuses_what_that_row_shares(model: TroL, config: ModelConfig, session: Session) -> None:
    first = [text(config, 40), text(config, 9, seed=1) + shown(config, 1), text(config, 3, seed=2)]
    prefill(session, config, *first)
    second = [
        first[0][:25] + text(config, 5, seed=3),
        first[1] + text(config, 50, seed=4),
        text(config, 7, seed=5),
    ]
    assert_close(prefill(session, config, *second), fresh_logits(model, second))
    assert session.reused.tolist() == [25, 25, 0]


def test_another_number_of_rows_reuses_nothing(model: TroL, config: ModelConfig, session: Session) -> None:
    prompt = text(config, 40)
    prefill(session, config, prompt)
    assert_close(prefill(session, config, prompt, prompt), fresh_logits(model, [prompt, prompt]))
    assert session.reused.tolist() == [0, 0]


def test_answer_tokens_are_read_again_as_they_were_run_once(model: TroL, config: ModelConfig) -> None:
    session, backend = watched_session(model)
    prompt, answer, question = text(config, 20), [7, 8, 9], text(config, 5, seed=1)
    prefill(session, config, prompt)
    for token in answer:
        session.decode(np.array([token]))
    backend.taken()
    found = extend(session, config, question)
    assert (session.reused.tolist(), backend.taken()) == ([20], [("extend", 3 + 5)])
    assert_close(found, fresh_logits(model, [prompt + answer + question]))


def test_a_prompt_of_one_token_is_a_single_pass_and_nothing_of_it_is_kept(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    """The official rule; behind it the token is part of a longer prompt, and is run twice."""
    prompt = [7, *text(config, 9)]
    assert_close(prefill(session, config, prompt[:1]), fresh_logits(model, [prompt[:1]]))
    assert_close(extend(session, config, prompt[1:]), fresh_logits(model, [prompt]))
    assert session.reused.tolist() == [0]
    assert_close(prefill(session, config, prompt[:1]), fresh_logits(model, [prompt[:1]]))
    assert session.reused.tolist() == [0]


def test_reset_forgets_the_prefix(config: ModelConfig, session: Session) -> None:
    prompt = text(config, 20)
    prefill(session, config, prompt)
    session.reset()
    assert (session.cache_bytes, session.prefix_bytes, session.reused.tolist()) == (0, 0, [])
    prefill(session, config, prompt)
    assert session.reused.tolist() == [0]


def test_a_session_without_a_kept_prefix_reuses_nothing(model: TroL, config: ModelConfig) -> None:
    session = model.new_session()
    for _ in range(2):
        prefill(session, config, text(config, 20))
        assert session.reused.tolist() == [0]


def test_the_last_picture_is_known_again(model: TroL) -> None:
    session, backend = watched_session(model)
    pixels = [model.preprocess([picture(20, 20, seed)]) for seed in range(2)]
    first = session.encode(pixels[0])
    assert len(backend.taken()) == 1
    np.testing.assert_array_equal(session.encode(pixels[0].copy()), first)
    assert backend.taken() == []
    assert np.abs(session.encode(pixels[1]) - first).max() > 0
    assert [graph for graph, _ in backend.taken()] == ["encode"]


def test_what_is_known_of_a_picture_is_not_the_caller_s_to_change(model: TroL) -> None:
    session, pixels = model.new_session(keep_prefix=True), model.preprocess([picture(20, 20)])
    for embeds in (session.encode(pixels), session.encode(pixels), session.fork().encode(pixels)):
        with pytest.raises(ValueError, match="read-only"):
            embeds[...] = 0
    assert model.new_session().encode(pixels).flags.writeable


def test_a_session_without_a_kept_prefix_keeps_no_picture(model: TroL) -> None:
    session, backend = watched_session(model, keep_prefix=False)
    for _ in range(2):
        session.encode(model.preprocess([picture(20, 20)]))
    assert len(backend.taken()) == 2


# --- where the rotary tables change


@pytest.mark.parametrize(
    ("held", "longer"), [(90, 97), (96, 97), (97, 96)], ids=["longer", "by one token", "back to a shorter one"]
)
def test_a_prompt_across_the_switch_is_read_again_and_a_warning_says_so(
    model: TroL, config: ModelConfig, session: Session, held: int, longer: int
) -> None:
    prompt = text(config, 100)
    prefill(session, config, prompt[:held])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = prefill(session, config, prompt[:longer])
    crosses = config.arch == "phi3"
    assert [str(warning.message) for warning in caught] == [READ_AGAIN] * crosses
    assert [(warning.category, warning.filename) for warning in caught] == [(UserWarning, __file__)] * crosses
    assert session.reused.tolist() == [0 if crosses else min(held, longer - 1)]
    assert_close(found, fresh_logits(model, [prompt[:longer]]))


def test_extend_across_the_switch_is_read_again_and_a_warning_says_so(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    """Decoded tokens count: 90 of the prompt, 5 of the answer, 2 of the question."""
    prefill(session, config, text(config, 90))
    for _ in range(5):
        session.decode(np.array([7]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = extend(session, config, [8, 9])
    crosses = config.arch == "phi3"
    assert [str(warning.message) for warning in caught] == [READ_AGAIN] * crosses
    assert [(warning.category, warning.filename) for warning in caught] == [(UserWarning, __file__)] * crosses
    assert_close(found, fresh_logits(model, [[*text(config, 90), *[7] * 5, 8, 9]]))


def test_on_either_side_of_the_switch_nothing_is_read_again(config: ModelConfig, session: Session) -> None:
    """A warning is an error in these tests."""
    for held, longer in ((50, 96), (97, 200)):
        prefill(session, config, text(config, 200)[:held])
        prefill(session, config, text(config, 200)[:longer])
        assert session.reused.tolist() == [held]
        session.reset()


# --- extend


def test_parts_one_after_the_other_give_what_the_whole_gives(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    prompt = text(config, 5) + shown(config, 1) + text(config, 9, seed=1) + shown(config, 2) + [4]
    prefill(session, config, prompt[:9])  # within the first picture
    for begin, end in ((9, 10), (10, 40), (40, len(prompt))):
        assert_close(extend(session, config, prompt[begin:end]), fresh_logits(model, [prompt[:end]]))
        assert session.reused.tolist() == [begin]
    assert session.lengths.tolist() == [len(prompt)]


def test_rows_of_a_batch_are_extended_by_parts_of_different_lengths(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    rows = [text(config, 30), text(config, 4, seed=1)]
    parts = [text(config, 2, seed=2), shown(config, 1) + text(config, 30, seed=3)]
    prefill(session, config, *rows)
    session.decode(np.array([7, 8]))
    found = extend(session, config, *parts)
    assert_close(found, fresh_logits(model, [[*rows[0], 7, *parts[0]], [*rows[1], 8, *parts[1]]]))
    assert session.reused.tolist() == [30, 4]


def test_a_cache_that_grows_keeps_both_passes(model: TroL, config: ModelConfig, session: Session) -> None:
    prompt = text(config, 600)
    for begin, end in ((0, 250), (250, 260), (260, 520), (520, 600)):
        (session.extend if begin else session.prefill)(**batch(config, [prompt[begin:end]]))
    assert session.cache_bytes == 2 * MICRO_MAX_SEQ * config.kv_bytes_per_token()
    assert_close(session.decode(np.array([5])), fresh_logits(model, [prompt], [[5]]))


def test_extend_may_fill_the_engine_and_no_more(config: ModelConfig, session: Session) -> None:
    prefill(session, config, text(config, MICRO_MAX_SEQ - 10))
    with pytest.raises(LimitError) as caught:
        extend(session, config, text(config, 11, seed=1))
    assert str(caught.value) == (
        "the prompt has 641 tokens (0 of pictures), the engine holds 640 with the answer; shorten it or rebuild the "
        "engine with --max-seq 897"
    )
    extend(session, config, text(config, 10, seed=1))
    assert session.lengths.tolist() == [MICRO_MAX_SEQ]


def test_extend_before_prefill_or_by_another_number_of_rows_is_refused(config: ModelConfig, session: Session) -> None:
    with pytest.raises(UsageError) as caught:
        extend(session, config, [5, 6])
    assert str(caught.value) == "1 rows to extend, the session holds 0; prefill() first"
    prefill(session, config, [5, 6], [7])
    with pytest.raises(UsageError) as caught:
        extend(session, config, [5, 6])
    assert str(caught.value) == "1 rows to extend, the session holds 2; prefill() first"


def test_a_decoded_image_token_cannot_become_part_of_a_prompt(model: TroL, config: ModelConfig) -> None:
    """Phi-3 can write one; no picture belongs to it."""
    session = model.new_session(keep_prefix=True)
    prefill(session, config, text(config, 9))
    session.decode(np.array([config.image_token_id]))
    with pytest.raises(UsageError) as caught:
        extend(session, config, [5])
    assert str(caught.value) == (
        f"the row holds a decoded image token (id {config.image_token_id}), which no prompt can hold without a "
        "picture; prefill() the conversation without it"
    )
    session.decode(np.array([5]))  # the row goes on


# --- fork


def test_forks_go_on_alone_both_ways(model: TroL, config: ModelConfig, session: Session) -> None:
    prompt = text(config, 5) + shown(config, 1)
    prefill(session, config, prompt)
    session.decode(np.array([7]))
    fork = session.fork()
    of_fork = fork.fork()
    assert_close(session.decode(np.array([8])), fresh_logits(model, [prompt], [[7], [8]]))
    assert_close(extend(fork, config, [9, 10]), fresh_logits(model, [[*prompt, 7, 9, 10]]))
    assert_close(extend(of_fork, config, [11, 12]), fresh_logits(model, [[*prompt, 7, 11, 12]]))
    assert_close(session.decode(np.array([13])), fresh_logits(model, [prompt], [[7], [8], [13]]))
    assert_close(fork.decode(np.array([14])), fresh_logits(model, [[*prompt, 7, 9, 10]], [[14]]))
    session.reset()
    assert_close(of_fork.decode(np.array([15])), fresh_logits(model, [[*prompt, 7, 11, 12]], [[15]]))


def test_a_fork_reuses_what_the_original_had_read(model: TroL, config: ModelConfig, session: Session) -> None:
    about = text(config, 5) + shown(config, 1)
    prefill(session, config, [*about, 7])
    fork = session.fork()
    assert (fork.lengths.tolist(), fork.keeps_prefix) == ([len(about) + 1], True)
    prefill(fork, config, [*about, 8, 9])
    assert fork.reused.tolist() == [len(about)]
    assert session.reused.tolist() == [0]


def test_a_fork_takes_memory_for_its_tokens_and_not_for_those_of_its_original(
    config: ModelConfig, session: Session
) -> None:
    prefill(session, config, text(config, 600))
    prefill(session, config, text(config, 600)[:400])
    assert session.cache_bytes == 2 * MICRO_MAX_SEQ * config.kv_bytes_per_token()
    assert session.fork().cache_bytes == 2 * 512 * config.kv_bytes_per_token()


def test_a_fork_of_a_session_without_rows_is_a_session_without_rows(session: Session, config: ModelConfig) -> None:
    fork = session.fork()
    assert fork.lengths.tolist() == []
    prefill(fork, config, [5, 6])


def test_a_fork_knows_the_last_picture_too(model: TroL) -> None:
    session, backend = watched_session(model)
    pixels = model.preprocess([picture(20, 20)])
    embeds = session.encode(pixels)
    np.testing.assert_array_equal(session.fork().encode(pixels), embeds)
    assert len(backend.taken()) == 1


# --- drop_prefix, memory


def without_prefix(call: str) -> str:
    return (
        f"{call}() needs a kept prefix and this session has none (keep_prefix=False, or drop_prefix() was called); "
        "make it, or its chat, with keep_prefix=True, or prefill() all tokens"
    )


def test_a_dropped_prefix_frees_half_the_cache_and_the_answer_goes_on(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    prompt, half = text(config, 20), 256 * config.kv_bytes_per_token()
    prefill(session, config, prompt)
    assert (session.cache_bytes, session.prefix_bytes, session.keeps_prefix) == (2 * half, half, True)
    session.drop_prefix()
    assert (session.cache_bytes, session.prefix_bytes, session.keeps_prefix) == (half, 0, False)
    assert_close(session.decode(np.array([7])), fresh_logits(model, [prompt], [[7]]))
    for call, forbidden in (("extend", lambda: extend(session, config, [5])), ("fork", session.fork)):
        with pytest.raises(UsageError) as caught:
            forbidden()
        assert str(caught.value) == without_prefix(call)
    prefill(session, config, prompt)
    assert (session.reused.tolist(), session.prefix_bytes) == ([0], 0)


def test_a_session_made_without_a_prefix_neither_extends_nor_forks(model: TroL, config: ModelConfig) -> None:
    session = model.new_session()
    prefill(session, config, [5, 6])
    assert session.prefix_bytes == 0
    for call, forbidden in (("extend", lambda: extend(session, config, [5])), ("fork", session.fork)):
        with pytest.raises(UsageError) as caught:
            forbidden()
        assert str(caught.value) == without_prefix(call)


def test_a_fork_outlives_the_prefix_its_original_drops(model: TroL, config: ModelConfig, session: Session) -> None:
    prompt = text(config, 20)
    prefill(session, config, prompt)
    fork = session.fork()
    session.drop_prefix()
    assert_close(extend(fork, config, [7]), fresh_logits(model, [[*prompt, 7]]))
    assert fork.prefix_bytes > 0


def test_the_prefix_is_counted_by_rows_and_capacity(config: ModelConfig, session: Session) -> None:
    prefill(session, config, [5, 6], text(config, 256))
    assert session.prefix_bytes == 2 * 512 * config.kv_bytes_per_token()
    assert session.cache_bytes == 2 * session.prefix_bytes


@pytest.mark.parametrize("beams", [1, 2])
def test_one_long_prompt_does_not_cost_all_later_ones(
    model: TroL, config: ModelConfig, session: Session, beams: int
) -> None:
    """Memory, and time: decode attends over the whole buffer."""
    long, per_token = text(config, 600), 2 * config.kv_bytes_per_token()
    prefill(session, config, long)
    assert session.cache_bytes == MICRO_MAX_SEQ * per_token
    session.repeat(beams)
    short = [*long[:150], 7, 8]
    assert_close(prefill(session, config, short), fresh_logits(model, [short]))
    assert (session.reused.tolist(), session.cache_bytes) == ([150], 256 * per_token)
    assert_close(session.decode(np.array([5])), fresh_logits(model, [short], [[5]]))
    prefill(session, config, [*short, *long[:400]])  # and grows again
    assert session.reused.tolist() == [len(short)]
    assert_close(session.decode(np.array([5])), fresh_logits(model, [[*short, *long[:400]]], [[5]]))


# --- beams in between


def test_a_search_leaves_the_prefix_for_the_next_prompt(model: TroL, config: ModelConfig, session: Session) -> None:
    about = text(config, 5) + shown(config, 1)
    prefill(session, config, [*about, 7])
    session.repeat(3)
    assert session.prefix_bytes == 256 * config.kv_bytes_per_token()  # one of it for all beams
    session.decode(np.array([5, 6, 7]))
    session.reorder(np.array([2, 2, 0]))
    session.decode(np.array([8, 9, 10]))
    question = [*about, 11, 12]
    assert_close(prefill(session, config, question), fresh_logits(model, [question]))
    assert (session.reused.tolist(), session.lengths.tolist()) == ([len(about)], [len(question)])
    assert_close(session.decode(np.array([5])), fresh_logits(model, [question], [[5]]))


def test_beams_cannot_be_extended_but_a_fork_of_them_goes_on(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    prompt = text(config, 9)
    prefill(session, config, prompt)
    session.repeat(2)
    session.decode(np.array([5, 6]))
    with pytest.raises(UsageError) as caught:
        extend(session, config, [5])
    assert str(caught.value) == ("extend() after a beam search: the rows are beams; prefill() the conversation instead")
    fork = session.fork()
    session.reorder(np.array([1, 1]))
    assert_close(fork.decode(np.array([7, 8])), fresh_logits(model, [prompt] * 2, [[5, 6], [7, 8]]))
    assert_close(prefill(fork, config, [*prompt, 7]), fresh_logits(model, [[*prompt, 7]]))


# --- when something goes wrong


@pytest.mark.parametrize("failing_run", range(5))
def test_an_interrupted_prompt_leaves_a_session_that_answers_right(
    model: TroL, config: ModelConfig, failing_run: int
) -> None:
    """Ctrl-C before any of the five chunks of two rows; what was read until then is reused."""
    session, backend = watched_session(model, prefill_chunk=10)
    first = [text(config, 20), text(config, 20, seed=1)]
    prefill(session, config, *first)
    session.decode(np.array([7, 8]))
    second = [first[0][:15] + text(config, 20, seed=2), first[1][:5] + shown(config, 1) + text(config, 9, seed=3)]
    backend.taken()
    backend.failing_run = failing_run
    with pytest.raises(KeyboardInterrupt):
        prefill(session, config, *second)
    assert session.lengths.tolist() == []
    with pytest.raises(UsageError, match="before prefill"):
        session.decode(np.array([7, 8]))
    with pytest.raises(UsageError, match=re.escape("2 rows to extend, the session holds 0; prefill() first")):
        extend(session, config, [5], [6])
    assert_close(prefill(session, config, *second), fresh_logits(model, second))
    # Row 0 has chunks of 10 and 10 behind the 15 it shares, row 1 has 10, 10 and 5 behind its 5.
    known = [(15, 5), (25, 5), (34, 5), (34, 15), (34, 25)]
    assert tuple(session.reused.tolist()) == known[failing_run]
    assert_close(session.decode(np.array([7, 8])), fresh_logits(model, second, [[7, 8]]))


def test_logits_that_are_no_numbers_do_not_spoil_what_was_read(model: TroL, config: ModelConfig) -> None:
    session, backend = watched_session(model)
    prompt = text(config, 9)
    prefill(session, config, prompt)
    broken = SimpleNamespace(
        extend=lambda *_: np.full((1, config.decoder.vocab_size), np.nan, np.float32), new_cache=backend.new_cache
    )
    session._backend = cast(Backend, broken)
    with pytest.raises(NumericError):
        extend(session, config, [5])
    session._backend = backend
    assert_close(prefill(session, config, [*prompt, 6]), fresh_logits(model, [[*prompt, 6]]))


class PoisonedBackend(WatchedBackend):
    """Sees no numbers in pictures while `poisoned`, and so writes none into the cache."""

    poisoned = True

    def extend(self, cache: Any, input_ids: np.ndarray, image_embeds: np.ndarray, *rest: Any) -> np.ndarray:
        seen = np.full_like(image_embeds, np.nan) if self.poisoned else image_embeds
        return super().extend(cache, input_ids, seen, *rest)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("call", [prefill, extend])
def test_what_an_answer_that_is_no_number_left_in_the_cache_spoils_no_other_prompt(
    model: TroL, config: ModelConfig, call: Callable[..., np.ndarray], chunk: int | None
) -> None:
    """A position that is masked counts 0 times what it holds, which for no number is no number."""
    backend = PoisonedBackend(model)
    session = Session(backend, model.config, model.manifest.limits, True, chunk)
    first, shows = text(config, 9), shown(config, 1) + text(config, 3)
    prefill(session, config, first)
    with pytest.raises(NumericError, match=r"^the logits of row 0 are not finite; "):
        call(session, config, *([[*first, *shows]] if call is prefill else [shows]))
    assert (session.lengths.tolist(), session.cache_bytes) == ([], 0)
    backend.poisoned = False
    for prompt in ([*first, 6], [*first, *shows]):
        assert_close(prefill(session, config, prompt), fresh_logits(model, [prompt]))


@contextmanager
def no_memory() -> Iterator[None]:
    """No cache can be made, grown, copied or rearranged."""

    def fail(*_: Any, **__: Any) -> np.ndarray:
        raise MemoryError

    def thin(cache: KVCache, times: int) -> None:
        cache.clear()
        raise LimitError(f"no memory for one of {times} rows")

    with pytest.MonkeyPatch.context() as patch:
        names = SimpleNamespace(zeros=fail, repeat=fail, float32=np.float32, dtype=np.dtype)
        patch.setattr(kv_cache, "np", names)
        patch.setattr(KVCache, "thin", thin)
        yield


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda session, config: prefill(session, config, [5, 6], [7, 8]), id="prefill of more rows"),
        pytest.param(lambda session, config: prefill(session, config, text(config, 300)), id="prefill of more tokens"),
        pytest.param(lambda session, config: extend(session, config, text(config, 300, seed=1)), id="extend"),
        pytest.param(lambda session, config: session.repeat(2), id="repeat"),
    ],
)
def test_a_call_without_memory_leaves_no_rows_and_a_session_that_works(
    model: TroL, config: ModelConfig, session: Session, call: Callable[[Session, ModelConfig], object]
) -> None:
    prefill(session, config, text(config, 250))
    with no_memory(), pytest.raises(LimitError, match=r"^the KV cache of \d row\(s\) of \d+ tokens needs "):
        call(session, config)
    assert (session.lengths.tolist(), session.cache_bytes) == ([], 0)
    assert_close(prefill(session, config, text(config, 250)), fresh_logits(model, [text(config, 250)]))
    assert session.reused.tolist() == [0]


def test_beams_that_cannot_be_dropped_without_memory_leave_no_rows(
    model: TroL, config: ModelConfig, session: Session
) -> None:
    prompt = text(config, 20)
    prefill(session, config, prompt)
    session.repeat(2)
    with no_memory(), pytest.raises(LimitError):
        prefill(session, config, [*prompt, 7])
    assert (session.lengths.tolist(), session.cache_bytes) == ([], 0)
    assert_close(prefill(session, config, [*prompt, 7]), fresh_logits(model, [[*prompt, 7]]))


def test_an_interrupted_growth_of_the_cache_leaves_no_rows(
    model: TroL, config: ModelConfig, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(cache: KVCache, tokens: int) -> None:
        cache.clear()
        raise KeyboardInterrupt

    prompt = text(config, 20)
    prefill(session, config, prompt)
    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "reserve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prefill(session, config, [*prompt, 7])
    assert (session.lengths.tolist(), session.cache_bytes) == ([], 0)
    assert_close(prefill(session, config, [*prompt, 7]), fresh_logits(model, [[*prompt, 7]]))


def test_a_fork_without_memory_leaves_the_original_as_it_is(model: TroL, config: ModelConfig, session: Session) -> None:
    prompt = text(config, 20)
    prefill(session, config, prompt)
    with no_memory(), pytest.raises(LimitError, match=r"^the KV cache of 1 row\(s\) of 256 tokens needs "):
        session.fork()
    assert_close(extend(session, config, [7]), fresh_logits(model, [[*prompt, 7]]))
    assert session.reused.tolist() == [20]


def test_rows_that_a_failed_prefill_did_not_reach_claim_no_more_than_the_cache_holds(
    model: TroL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter batch shrinks the cache; if it fails at its first row, the second must not count on what was cut."""
    random = np.random.default_rng(0)
    long = random.integers(10, 900, (2, 600))
    long[long == model.config.image_token_id] = 10
    short = long[:, :110].copy()
    short[:, 100:] = 5
    session = model.new_session(keep_prefix=True)
    session.prefill(long)
    with monkeypatch.context() as failing:
        failing.setattr(model._backend, "extend", fails)
        with pytest.raises(LimitError, match="no memory"):
            session.prefill(short)
    logits = session.prefill(long)
    assert (session.reused <= 100).all()
    assert_close(logits, model.new_session().prefill(long))


def fails(*_: Any) -> Any:
    raise LimitError("no memory")
