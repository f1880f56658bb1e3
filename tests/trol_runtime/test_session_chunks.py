"""Prompts read in chunks: for every chunk length what they give at once, in less memory, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelled_prompts import Labels, batch, fresh_logits, shown, text, watched_session
from small_prompts import assert_close, assert_same_choice
from trol_runtime import TroL, kv_cache
from trol_runtime.errors import LimitError, UsageError
from trol_runtime.session import Session

STEPS = 3


def with_picture(model: TroL) -> Labels:
    """23 tokens: text, a picture of 16, text."""
    return text(model.config, 4) + shown(model.config, 1) + text(model.config, 3, seed=1)


def greedy(session: Session, arguments: dict[str, Any]) -> tuple[list[np.ndarray], list[list[int]]]:
    """Logits and choices of the prompt and of STEPS steps behind it."""
    logits = [session.prefill(**arguments)]
    for _ in range(STEPS):
        logits.append(session.decode(logits[-1].argmax(-1)))
    return logits, [step.argmax(-1).tolist() for step in logits]


def assert_same_answers(model: TroL, chunked: Session, rows: list[Labels]) -> None:
    arguments = batch(model.config, rows)
    logits, ids = greedy(chunked, arguments)
    expected, expected_ids = greedy(model.new_session(), arguments)
    for found, wanted in zip(logits, expected, strict=True):
        assert_close(found, wanted)
    assert ids == expected_ids


@pytest.mark.parametrize("chunk", range(1, 25))
def test_every_chunk_length_gives_what_the_whole_gives(model: TroL, chunk: int) -> None:
    """From single tokens, each run twice all the same, to one more than the prompt has."""
    session, backend = watched_session(model, keep_prefix=False, prefill_chunk=chunk)
    assert_same_answers(model, session, [with_picture(model)])
    parts = [tokens for graph, tokens in backend.taken() if graph == "extend"]
    assert parts == [chunk] * (23 // chunk) + [23 % chunk] * (23 % chunk > 0)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 130), min_size=1, max_size=3),
    chunk=st.integers(1, 140),
    keep_prefix=st.booleans(),
    seed=st.integers(0, 9),
)
def test_rows_of_any_lengths_in_chunks_of_any_length_give_what_the_wholes_give(
    model: TroL, lengths: list[int], chunk: int, keep_prefix: bool, seed: int
) -> None:
    """Shorter and longer than the 96 tokens at which phi3 changes its tables; every second row shows a picture."""
    rows = [
        text(model.config, length, seed) + (shown(model.config, row) if row % 2 else [])
        for row, length in enumerate(lengths)
    ]
    assert_same_answers(model, model.new_session(keep_prefix, chunk), rows)


@pytest.mark.parametrize("length", [96, 97])
@pytest.mark.parametrize("chunk", [1, 40, 95, 96, 97])
def test_every_chunk_takes_the_rotary_tables_of_the_whole_prompt(model: TroL, length: int, chunk: int) -> None:
    """phi3 changes them behind 96 tokens; nothing is read again and nothing warns."""
    prompt = text(model.config, length)
    found = model.new_session(prefill_chunk=chunk).prefill(**batch(model.config, [prompt]))
    expected = fresh_logits(model, [prompt])
    assert_close(found, expected)
    assert_same_choice(found, expected)


def test_the_second_pass_s_cache_is_gone_when_the_prompt_is_read(model: TroL) -> None:
    session = model.new_session(prefill_chunk=5)
    session.prefill(**batch(model.config, [with_picture(model), [5, 6]]))
    assert session.prefix_bytes == 0
    assert session.cache_bytes == 2 * 256 * model.config.kv_bytes_per_token()
    with pytest.raises(UsageError, match=r"^extend\(\) needs a kept prefix "):
        session.extend(np.array([[5], [6]]))


def test_a_prompt_of_one_token_is_a_single_pass_all_the_same(model: TroL) -> None:
    session, backend = watched_session(model, keep_prefix=False, prefill_chunk=1)
    assert_close(session.prefill(np.array([[7]])), model.new_session().prefill(np.array([[7]])))
    assert backend.taken() == [("decode", 1)]


def test_no_memory_for_the_second_pass_leaves_no_rows(model: TroL, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.new_session(prefill_chunk=5)
    made: list[None] = []

    def zeros(*arguments: Any) -> np.ndarray:
        made.append(None)
        if len(made) > 2 * model.config.decoder.layers:  # all of the first pass
            raise MemoryError
        return np.zeros(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kv_cache, "np", SimpleNamespace(zeros=zeros, float32=np.float32, dtype=np.dtype))
        with pytest.raises(LimitError, match=r"^the KV cache of 1 row\(s\) of 256 tokens needs "):
            session.prefill(**batch(model.config, [with_picture(model)]))
    assert session.lengths.tolist() == []
    assert_same_answers(model, session, [with_picture(model)])


def test_an_engine_loaded_with_a_chunk_length_reads_every_prompt_so(
    model: TroL, micro_engine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunked = TroL.load(micro_engine(model.config.arch), prefill_chunk=50)
    parts: list[int] = []
    extend = chunked._backend.extend

    def watched(cache: Any, input_ids: np.ndarray, *rest: Any) -> np.ndarray:
        parts.append(input_ids.shape[1])
        return extend(cache, input_ids, *rest)

    monkeypatch.setattr(chunked._backend, "extend", watched)
    answers = [engine.start("hello", max_new_tokens=12) for engine in (chunked, model)]
    assert ["".join(answer) for answer in answers] == [answers[1].text] * 2
    assert answers[0].token_ids == answers[1].token_ids
    assert parts[:2] == [50, 50]
    parts.clear()
    chunked.new_session(prefill_chunk=7).prefill(np.full((1, 15), 5))
    assert parts == [7, 7, 1]


@pytest.mark.parametrize("chunk", [0, -1, 1.5, "7", True])
def test_a_chunk_that_is_no_number_of_tokens_is_refused(
    model: TroL, micro_engine: Callable[..., Path], chunk: Any
) -> None:
    for call in (
        lambda: TroL.load(micro_engine(model.config.arch), prefill_chunk=chunk),
        lambda: model.new_session(prefill_chunk=chunk),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value) == f"prefill_chunk is {chunk!r}, expected a whole number, 1 or more"
