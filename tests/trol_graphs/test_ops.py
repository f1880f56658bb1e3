"""The custom operators' eager arithmetic and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trol_graphs.ops import attention, cache_write, rms_norm, rotary_embedding


def heads(count: int, length: int, seed: int, width: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, count, length, width)).astype(np.float32))


@pytest.mark.parametrize(
    ("queries", "keys", "mask"),
    [
        pytest.param(5, 5, torch.ones(1, 1, 5, 5, dtype=torch.bool), id="with a mask"),
        pytest.param(1, 5, None, id="one query, more keys"),
        pytest.param(5, 1, None, id="more queries than keys"),
    ],
)
def test_causal_attention_is_square_and_without_a_mask(queries: int, keys: int, mask: torch.Tensor | None) -> None:
    q, k, v = heads(2, queries, 0), heads(2, keys, 1), heads(2, keys, 2)
    with pytest.raises(ValueError, match="causal attention must be square and without a mask"):
        attention(q, k, v, mask, True)


def test_query_head_j_reads_key_value_head_j_over_group_size() -> None:
    q, k, v = heads(6, 4, 0), heads(2, 4, 1), heads(2, 4, 2)
    found = attention(q, k, v, None, True)
    for j in range(6):
        group = slice(j // 3, j // 3 + 1)
        alone = attention(q[:, j : j + 1], k[:, group], v[:, group], None, True)
        torch.testing.assert_close(found[:, j : j + 1], alone)


def test_a_mask_of_the_valid_positions_equals_attention_to_those_alone() -> None:
    q, k, v = heads(2, 1, 0), heads(2, 7, 1), heads(2, 7, 2)
    valid = torch.arange(7) <= 4
    found = attention(q, k, v, valid[None, None, None], False)
    torch.testing.assert_close(found, attention(q, k[:, :, :5], v[:, :, :5], None, False))


def test_rotary_embedding_turns_the_halves_against_each_other() -> None:
    x = torch.tensor([[[[1.0, 2.0, 10.0, 20.0]]]])
    cos, sin = torch.tensor([[[0.6, 0.0]]]), torch.tensor([[[0.8, 1.0]]])
    expected = torch.tensor([[[[0.6 - 8.0, -20.0, 6.0 + 0.8, 2.0]]]])
    torch.testing.assert_close(rotary_embedding(x, cos, sin), expected)


def test_cache_write_places_each_row_at_its_own_index_and_leaves_the_argument_alone() -> None:
    cache = torch.zeros(2, 1, 5, 1)
    rows = torch.tensor([[[[1.0]]], [[[2.0]]]])
    written = cache_write(cache, rows, torch.tensor([0, 3]))
    assert written[:, 0, :, 0].tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 2, 0]]
    assert not cache.any()


def test_cache_write_without_an_index_begins_at_the_front() -> None:
    written = cache_write(torch.zeros(1, 1, 4, 1), torch.ones(1, 1, 2, 1), None)
    assert written.flatten().tolist() == [1, 1, 0, 0]


def test_rms_norm_divides_by_the_root_mean_square_alone() -> None:
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0])
    root = np.sqrt(12.5 + 0.5)
    torch.testing.assert_close(rms_norm(x, weight, 0.5), torch.tensor([[3 / root, 40 / root]], dtype=torch.float32))
