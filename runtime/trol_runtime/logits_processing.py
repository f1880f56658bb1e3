"""What changes the scores of the next token before it is chosen: transformers' processors, in its order.

`process` serves every kind of generation: repetition penalty, then minimum length. `warp` serves sampling: temperature,
then top-k, top-p and min-p, each among the tokens that the ones before left over. A token that is out scores -inf.

Scores are float32 (rows, vocab): logits for greedy and sampling, their log-softmax for beams. What is given is never
altered; where there is nothing to do, it is returned as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trol_runtime.array_types import Floats, Ids
from trol_runtime.generation_config import GenerationConfig

_OUT = np.float32(-np.inf)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities of logits, both float32 (rows, vocab)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def process(
    scores: Floats, config: GenerationConfig, *, token_ids: Ids, new_tokens: int, held_off_ids: Sequence[int]
) -> Floats:
    """Scores after repetition_penalty and min_new_tokens of `config`.

    token_ids: int64 (rows, n), what counts as said in each row: usually prompt and answer so far. Ids that cannot be
      chosen are ignored: `<image>`, or -1 where rows differ in length
    new_tokens: how many tokens of the answer there are; while fewer than min_new_tokens, none of held_off_ids comes
    """
    if config.repetition_penalty != 1:
        scores = _penalise(scores, token_ids, config.repetition_penalty)
    if new_tokens < config.min_new_tokens:
        scores = scores.copy()
        scores[:, [token_id for token_id in held_off_ids if 0 <= token_id < scores.shape[1]]] = _OUT
    return scores


def warp(scores: Floats, config: GenerationConfig) -> Floats:
    """Scores after temperature, top_k, top_p and min_p of `config`; at least one token of each row stays in."""
    if config.temperature is not None and config.temperature != 1:
        scores = scores / config.temperature
    if config.top_k is not None:
        scores = _keep_top_k(scores, config.top_k)
    if config.top_p is not None and config.top_p < 1:
        scores = _keep_top_p(scores, config.top_p)
    if config.min_p:
        scores = _keep_min_p(scores, config.min_p)
    return scores


def _penalise(scores: Floats, token_ids: Ids, penalty: float) -> Floats:
    """What was said, once or often, is divided by `penalty` if positive, else multiplied by it."""
    rows, columns = np.nonzero((token_ids >= 0) & (token_ids < scores.shape[1]))
    said = rows, token_ids[rows, columns]
    found = scores[said]
    scores = scores.copy()
    scores[said] = np.where(found < 0, found * penalty, found / penalty)
    return scores


def _keep_top_k(scores: Floats, top_k: int) -> Floats:
    """The k best, and whatever equals the last of them."""
    rank = min(top_k, scores.shape[1])
    border = np.partition(scores, -rank)[:, -rank, None]
    return np.where(scores < border, _OUT, scores)


def _keep_top_p(scores: Floats, top_p: float) -> Floats:
    """Without the worst tokens that together are at most 1 - top_p probable; of equal ones the highest ids go first."""
    kept = scores.copy()
    for row in kept:
        ascending = np.sort(row[row > _OUT])
        weights = np.exp(ascending.astype(np.float64) - ascending[-1])
        # Rounded where transformers rounds: sums that meet the border, as equal tokens' do, fall on the same side.
        probabilities = (weights / weights.sum()).astype(np.float32)
        summed = probabilities.cumsum(dtype=np.float64).astype(np.float32)
        removed = min(int(np.searchsorted(summed, np.float32(1 - top_p), side="right")), len(summed) - 1)
        border = ascending[removed]
        equals_kept = np.searchsorted(ascending, border, side="right") - removed
        row[row < border] = _OUT
        row[np.flatnonzero(row == border)[equals_kept:]] = _OUT
    return kept


def _keep_min_p(scores: Floats, min_p: float) -> Floats:
    """What is at least `min_p` times as probable as the best one."""
    return np.where(scores - scores.max(axis=-1, keepdims=True) < np.float32(math.log(min_p)), _OUT, scores)
