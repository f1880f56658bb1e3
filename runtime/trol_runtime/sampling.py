"""Drawing the next token of every row from its scores: equal seeds and equal scores draw equal tokens.

Each row has a random stream of its own, so that its tokens depend on the seed, its place in the batch and its own
scores, and not on which other rows there are or when they end. A stream is the raw output, which numpy keeps the same
in all versions, of the counter-based generator Philox with the key (seed, row).
"""

from __future__ import annotations

import numpy as np

from trol_runtime.array_types import Floats, Ids


class Sampler:
    """The random streams of one generation.

    seed: 0 to 2**64 - 1
    rows: rows of the batch
    """

    def __init__(self, seed: int, rows: int) -> None:
        self._streams = [np.random.Philox(key=seed + (row << 64)) for row in range(rows)]

    def draw(self, scores: Floats) -> Ids:
        """An id per row, int64 (rows,), each with its probability in softmax(scores); float32 (rows, vocab).

        -inf is never drawn. Every call takes one number from every stream, rows that have ended included.
        """
        return np.array([_draw(row, stream) for row, stream in zip(scores, self._streams, strict=True)], np.int64)


def _draw(scores: Floats, stream: np.random.Philox) -> np.int64:
    """One id by the inverse of the cumulative distribution, in float64."""
    drawable = np.flatnonzero(scores > -np.inf)
    summed = np.exp(scores[drawable].astype(np.float64) - scores.max()).cumsum()
    uniform = (stream.random_raw() >> 11) * 2.0**-53  # [0, 1) in steps that float64 holds exactly
    return drawable[np.searchsorted(summed, uniform * summed[-1], side="right")]
