"""Processors against those of transformers: each alone, all in its order, and the rules at the borders."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import GenerationConfig as TransformersConfig
from transformers import GenerationMixin, PretrainedConfig

from trol_runtime.generation_config import GenerationConfig
from trol_runtime.logits_processing import log_softmax, process, warp

VOCAB = 500
EOS = (3, 7)
NO_IDS = np.zeros((2, 0), np.int64)
OUT = -np.inf


class Lists(GenerationMixin):
    """What transformers' `generate` asks for its list of processors."""

    config = PretrainedConfig(is_encoder_decoder=False)


def by_transformers(
    logits: np.ndarray, token_ids: np.ndarray, prompt_length: int, eos: tuple[int, ...] = EOS, **options: Any
) -> np.ndarray:
    """Scores after the processors and warpers that transformers builds for these options, in the order it does."""
    sampling = not {"temperature", "top_k", "top_p", "min_p"}.isdisjoint(options)
    config = TransformersConfig(do_sample=sampling, **{"top_k": 0, **options} if sampling else options)
    config._eos_token_tensor = torch.tensor(eos)
    processors = cast(Any, Lists())._get_logits_processor(config, input_ids_seq_length=prompt_length)
    return processors(torch.from_numpy(token_ids), torch.from_numpy(logits)).numpy()


def ours(
    logits: np.ndarray, token_ids: np.ndarray, prompt_length: int, eos: tuple[int, ...] = EOS, **options: Any
) -> np.ndarray:
    config = GenerationConfig(**options)
    new_tokens = token_ids.shape[1] - prompt_length
    return warp(process(logits, config, token_ids=token_ids, new_tokens=new_tokens, held_off_ids=eos), config)


def random_logits(seed: int, rows: int = 2, vocab: int = VOCAB) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal((rows, vocab))).astype(np.float32)


def kept(scores: np.ndarray) -> list[list[int]]:
    """Ids that are in, per row."""
    return [np.flatnonzero(row > OUT).tolist() for row in scores]


# --- transformers

OPTIONS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"min_new_tokens": 4},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.5},
    {"top_p": 1e-9},
    {"top_p": 1.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.0},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.8},
    {"top_k": 30, "min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.02},
    {"repetition_penalty": 1.5, "min_new_tokens": 9, "temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.01},
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scores_are_those_of_transformers(options: dict[str, Any], seed: int) -> None:
    logits = random_logits(seed)
    token_ids = np.random.default_rng(seed).integers(0, VOCAB, (2, 200))
    arguments = logits, token_ids, 197
    # Every operation on a score itself is one rounding of float32, so that nothing may differ.
    np.testing.assert_array_equal(ours(*arguments, **options), by_transformers(*arguments, **options))


def test_the_order_of_the_warpers_makes_a_difference_and_is_that_of_transformers() -> None:
    """After top_k = 2 the better of two tokens has 0.6 of what is left: enough for top_p, and not before."""
    logits = np.log(np.array([[0.3, 0.2, 0.2, 0.2, 0.1]], np.float32) + np.array([[0, 1e-3, 0, 0, 0]], np.float32))
    options: dict[str, Any] = {"top_k": 2, "top_p": 0.55}
    assert kept(ours(logits, NO_IDS, 0, **options)) == [[0]]
    assert kept(by_transformers(logits, NO_IDS, 0, **options)) == [[0]]


@pytest.mark.parametrize("top_p", [0.01, 0.1, 0.25, 0.5, 0.7, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("vocab", [4, 10, 40, 300])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_of_equal_tokens_top_p_keeps_as_many_as_transformers(vocab: int, levels: int, top_p: float) -> None:
    logits = np.random.default_rng(vocab).integers(0, levels, (2, vocab)).astype(np.float32)
    found, expected = (scores(logits, NO_IDS, 0, top_p=top_p) for scores in (ours, by_transformers))
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))


# --- rules


def test_top_p_keeps_the_lower_of_equal_ids_which_transformers_leaves_open() -> None:
    assert kept(warp(np.zeros((1, 100), np.float32), GenerationConfig(top_p=0.25))) == [list(range(25))]


def test_top_k_keeps_all_that_equal_the_last_one() -> None:
    logits = np.array([[1, 5, 3, 3, 3, 0]], np.float32)
    assert kept(warp(logits, GenerationConfig(top_k=2))) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}], ids=str)
def test_the_best_token_always_stays(options: dict[str, Any]) -> None:
    logits = random_logits(0)
    assert kept(warp(logits, GenerationConfig(**options))) == [[best] for best in logits.argmax(axis=1)]


def test_a_token_is_penalised_once_however_often_it_was_said() -> None:
    logits = np.array([[2.0, -2.0, 1.0]], np.float32)
    config = GenerationConfig(repetition_penalty=2.0)
    found = process(logits, config, token_ids=np.array([[0, 1, 0, 0, 1]]), new_tokens=0, held_off_ids=EOS)
    assert found.tolist() == [[1.0, -4.0, 1.0]]


def test_ids_that_cannot_be_chosen_are_not_penalised() -> None:
    """`<image>` has an embedding and no logit; -1 fills rows of different lengths."""
    logits = np.array([[2.0, -2.0, 1.0]], np.float32)
    config = GenerationConfig(repetition_penalty=2.0)
    found = process(logits, config, token_ids=np.array([[-1, 3, 99]]), new_tokens=0, held_off_ids=EOS)
    assert found.tolist() == logits.tolist()


def test_nothing_ends_before_min_new_tokens() -> None:
    logits = np.zeros((1, 5), np.float32)
    config = GenerationConfig(min_new_tokens=2)
    scores = [
        process(logits, config, token_ids=NO_IDS[:1], new_tokens=n, held_off_ids=(3, 1)).tolist() for n in range(3)
    ]
    assert scores == [[[0, OUT, 0, OUT, 0]], [[0, OUT, 0, OUT, 0]], [[0, 0, 0, 0, 0]]]


def test_an_eos_id_that_the_head_does_not_have_puts_nothing_out() -> None:
    logits = np.zeros((1, 5), np.float32)
    config = GenerationConfig(min_new_tokens=2)
    assert process(logits, config, token_ids=NO_IDS[:1], new_tokens=0, held_off_ids=(-1, 5)).tolist() == [[0] * 5]


def test_what_is_given_is_not_altered_and_nothing_to_do_costs_no_copy() -> None:
    logits = random_logits(1)
    before = logits.copy()
    token_ids = np.array([[1, 2], [3, 4]])
    for options in OPTIONS:
        ours(logits, token_ids, 2, **options)
    np.testing.assert_array_equal(logits, before)
    idle = GenerationConfig(temperature=1.0, top_p=1.0, min_p=0.0)
    assert warp(process(logits, idle, token_ids=token_ids, new_tokens=0, held_off_ids=EOS), idle) is logits


def test_log_softmax_is_that_of_torch() -> None:
    logits = np.concatenate([random_logits(2, vocab=92544), 1e4 * random_logits(3, vocab=92544)])
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1).numpy()
    # One rounding of the shifted logit, one of the sum's logarithm, which is below 12.
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=3e-7, atol=3e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scores_stay_float32(options: dict[str, Any]) -> None:
    assert ours(random_logits(4), np.array([[1, 2], [3, 4]]), 2, **options).dtype == np.float32
