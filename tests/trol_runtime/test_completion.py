"""Answers of different lengths as one batch."""

from __future__ import annotations

import numpy as np

from trol_runtime.completion import Completion


def test_rows_of_different_lengths_are_padded_on_the_right() -> None:
    made = Completion.of_rows(
        [np.array([5, 2]), np.array([7, 8, 9])],
        [np.array([-0.5, -1.0], np.float32), np.array([-1.0, -2.0, -3.0], np.float32)],
        [-0.75, -2.0],
        pad_token_id=2,
    )
    assert made.token_ids.tolist() == [[5, 2, 2], [7, 8, 9]]
    assert made.logprobs.tolist() == [[-0.5, -1.0, 0.0], [-1.0, -2.0, -3.0]]
    assert made.scores.tolist() == [-0.75, -2.0]
    assert [array.dtype for array in (made.token_ids, made.logprobs, made.scores)] == [np.int64, np.float32, np.float32]


def test_a_row_may_have_no_tokens() -> None:
    empty = np.zeros(0, np.float32)
    made = Completion.of_rows([empty.astype(np.int64)] * 2, [empty] * 2, [0.0, 0.0], pad_token_id=2)
    assert made.token_ids.shape == made.logprobs.shape == (2, 0)
