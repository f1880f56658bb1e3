"""The answers of a whole batch as arrays: their tokens, how probable these were, and how good each answer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Completion:
    """What was generated in each row of a batch.

    token_ids: int64 (batch, steps), eos included, right-padded with the pad id
    logprobs: float32 (batch, steps), log-softmax of the model's own logits at each of these tokens, whatever penalty or
      temperature it was chosen with; 0 at padding
    scores: float32 (batch,), what answers are ranked by. Beam search: the sum of the log-probabilities, after
      penalties, over `length ** length_penalty`; greedy and sampling: the mean of `logprobs`
    """

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    scores: NDArray[np.float32]

    @classmethod
    def of_rows(
        cls,
        token_ids: Sequence[NDArray[np.int64]],
        logprobs: Sequence[NDArray[np.float32]],
        scores: Sequence[float],
        pad_token_id: int,
    ) -> Completion:
        """Rows of different lengths as one batch; `token_ids` and `logprobs` of a row have the same length."""
        shape = len(token_ids), max(map(len, token_ids))
        padded_ids, padded_logprobs = np.full(shape, pad_token_id, np.int64), np.zeros(shape, np.float32)
        for row, (ids, values) in enumerate(zip(token_ids, logprobs, strict=True)):
            padded_ids[row, : len(ids)] = ids
            padded_logprobs[row, : len(ids)] = values
        return cls(padded_ids, padded_logprobs, np.asarray(scores, np.float32))
