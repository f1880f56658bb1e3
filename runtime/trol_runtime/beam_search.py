"""Beam search as the official evaluation does it: transformers 4.41, `_beam_search` with its `BeamSearchScorer`.

Every prompt of a batch is searched by itself, with `num_beams` running answers in neighbouring rows. What ends with an
eos id becomes a finished answer, of which the best `num_beams` are kept; the best of those is the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trol_runtime.array_types import Floats, Ids
from trol_runtime.completion import Completion
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.logits_processing import log_softmax, process


class Beams(Protocol):
    """The rows that a search drives, after the prefill of their prompts: a `Session`."""

    def repeat(self, times: int) -> None:
        """Make `times` neighbouring rows of every row."""

    def reorder(self, sources: Ids) -> None:
        """Row r goes on from what row sources[r], of the same prompt, generated since `repeat`; int64 (rows,)."""

    def decode(self, token_ids: Ids) -> Floats:
        """Append one token to every row, int64 (rows,), and return the logits that follow, (rows, vocab)."""


def beam_search(
    beams: Beams,
    logits: Floats,
    config: GenerationConfig,
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    held_off_ids: Sequence[int],
    pad_token_id: int,
    prompts: Ids,
) -> Completion:
    """The best answer to every prompt.

    logits: float32 (batch, vocab), the prefill's
    config: num_beams, length_penalty, early_stopping, and what `logits_processing.process` heeds
    max_new_tokens: 1 or more; in place of the config's, which does not know the room in the engine
    held_off_ids: what config.min_new_tokens keeps from coming; for transformers that is eos_token_ids
    prompts: int64 (batch, n), what repetition_penalty takes as said before the answer

    Equal scores are ranked by beam, then by id, the lower first; transformers leaves that open. As there, an answer
    that one of several eos ids ended is returned with the first of them, but with the log-probability of its own.
    """
    searches = [_Search(config, prompt, eos_token_ids, held_off_ids) for prompt in prompts]
    beams.repeat(config.num_beams)
    logits = logits.repeat(config.num_beams, axis=0)
    unmoved = np.arange(len(logits))
    for step in range(max_new_tokens):
        sources, token_ids = unmoved.copy(), np.full(len(logits), pad_token_id, np.int64)
        for rows, search in zip(unmoved.reshape(len(searches), -1), searches, strict=True):
            if not search.is_over:  # otherwise its rows go on with padding until the other prompts' are through
                parents, token_ids[rows] = search.advance(logits[rows])
                sources[rows] = rows[parents]
        if step + 1 == max_new_tokens or all(search.is_over for search in searches):
            break
        if (sources != unmoved).any():
            beams.reorder(sources)
        logits = beams.decode(token_ids)
    answers = [search.best() for search in searches]
    return Completion.of_rows(
        [answer.token_ids for answer in answers],
        [answer.logprobs for answer in answers],
        [answer.score for answer in answers],
        pad_token_id,
    )


@dataclass(frozen=True, eq=False)
class _Answer:
    """A finished answer: its ids, int64 (n,), the model's log-probabilities of them, float32 (n,), and its rank."""

    token_ids: Ids
    logprobs: Floats
    score: float


class _Search:
    """The search for the answer to one prompt.

    is_over: no running answer promises to become better than the worst of the finished ones
    """

    def __init__(
        self, config: GenerationConfig, prompt: Ids, eos_token_ids: Sequence[int], held_off_ids: Sequence[int]
    ) -> None:
        self.is_over = False
        self._config = config
        self._eos_token_ids = eos_token_ids
        self._held_off_ids = held_off_ids
        self._finished: list[_Answer] = []
        # Of every running answer: prompt and ids so far, log-probabilities of these ids, sum of their scores.
        self._said = prompt[None].repeat(config.num_beams, axis=0)
        self._logprobs = np.zeros((config.num_beams, 0), np.float32)
        self._sums = np.full(config.num_beams, -1e9, np.float32)  # all are equal at first, so that one is enough
        self._sums[0] = 0

    def advance(self, logits: Floats) -> tuple[Ids, Ids]:
        """One token further, by float32 (num_beams, vocab) logits of the running answers.

        Returns, of each answer that runs then: which of those before it continues, and its new id; int64 (num_beams,).
        """
        width, length = self._logprobs.shape
        logprobs = log_softmax(logits)
        scores = self._sums[:, None] + process(
            logprobs, self._config, token_ids=self._said, new_tokens=length, held_off_ids=self._held_off_ids
        )
        # So many that enough are left to run if every eos id is among the best of every answer.
        best = _highest(scores.ravel(), max(2, 1 + len(self._eos_token_ids)) * width)
        parents, token_ids = np.divmod(best, logits.shape[1])
        said = np.column_stack([self._said[parents], token_ids])
        logprobs = np.column_stack([self._logprobs[parents], logprobs[parents, token_ids]])
        sums = scores[parents, token_ids]

        ends = np.isin(token_ids, self._eos_token_ids)
        for rank in np.flatnonzero(ends[:width]):  # ends that rank behind are lost
            said[rank, -1] = self._eos_token_ids[0]
            self._finish(said[rank], logprobs[rank], sums[rank])
        running = np.flatnonzero(~ends)[:width]
        self._said, self._logprobs, self._sums = said[running], logprobs[running], sums[running]
        self.is_over = self._nothing_better_in_sight(sums[0])
        return parents[running], token_ids[running]

    def best(self) -> _Answer:
        """The best answer, those that still run counted as finished; of equal ones the last."""
        if not self.is_over:
            for said, logprobs, total in zip(self._said, self._logprobs, self._sums, strict=True):
                self._finish(said, logprobs, total)
        return max(reversed(self._finished), key=_score)

    def _finish(self, said: Ids, logprobs: Floats, total: np.float32) -> None:
        """Keep an answer if it is among the best; of equal ones the first."""
        score = float(total) / len(logprobs) ** self._config.length_penalty
        if len(self._finished) == self._config.num_beams:
            worst = min(self._finished, key=_score)
            if score <= worst.score:
                return
            self._finished.remove(worst)
        self._finished.append(_Answer(said[-len(logprobs) :], logprobs, score))

    def _nothing_better_in_sight(self, best_sum: np.float32) -> bool:
        """Whether enough is finished and, as the official search guesses, no candidate is ahead of all of that."""
        if len(self._finished) < self._config.num_beams:
            return False
        length = self._logprobs.shape[1]
        return self._config.early_stopping or (
            min(map(_score, self._finished)) >= float(best_sum) / length**self._config.length_penalty
        )


def _score(answer: _Answer) -> float:
    return answer.score


def _highest(scores: Floats, count: int) -> Ids:
    """Indices of the `count` highest of (n,) scores, the best first, of equal ones the lowest index first."""
    border = np.partition(scores, -count)[-count]
    candidates = np.flatnonzero(scores >= border)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]
