"""A language model without weights: its logits are drawn by chance from a seed and all tokens before.

Beam search was recorded with it (`record_beam_search.py`) and is tested on it: equal runs of tokens give equal logits,
whatever row they stand in, and two different runs never score exactly the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TableLanguageModel:
    """seed: of the table; spread: standard deviation of the logits; favour: what is added to those of `favoured`."""

    seed: int
    vocab: int
    spread: float = 1.0
    favoured: tuple[int, ...] = ()
    favour: float = 0.0

    def logits(self, token_ids: np.ndarray) -> np.ndarray:
        """What follows each row of int64 (rows, n), float32 (rows, vocab)."""
        # RandomState, unlike numpy's newer generators, draws the same in every version.
        rows = [np.random.RandomState([self.seed, *row]).standard_normal(self.vocab) for row in token_ids.tolist()]
        logits = self.spread * np.array(rows)
        logits[:, list(self.favoured)] += self.favour
        return logits.astype(np.float32)

    def prompts(self, batch: int, length: int) -> np.ndarray:
        """Different prompts, int64 (batch, length)."""
        return np.random.RandomState([self.seed, batch, length]).randint(
            self.vocab, size=(batch, length), dtype=np.int64
        )
