"""Attention step by step in bfloat16 against torch's own in fp32: values and gradients."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trol_export.tiny.explicit_attention import explicit_attention
from trol_graphs.ops import attention

ROWS, TOKENS, WIDTH = 3, 37, 16

# bfloat16 keeps 8 bits, so a rounding is off by up to 2**-9; scores, exponentials, shares and results are rounded one
# after the other. Of all values together, by the root of the mean square:
MOST_OFF = 2**-7


class Call(NamedTuple):
    """A call of scaled_dot_product_attention as the model's modules make it."""

    query_heads: int = 4
    kv_heads: int = 4
    queries: int = TOKENS
    biased: bool = False
    causal: bool = False

    def operands(self) -> list[Tensor]:
        return [
            values(ROWS, heads, tokens, WIDTH, seed=seed).requires_grad_(True)
            for seed, (heads, tokens) in enumerate(
                [(self.query_heads, self.queries), (self.kv_heads, TOKENS), (self.kv_heads, TOKENS)]
            )
        ]

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.bias() if self.biased else None
        grouped = self.query_heads != self.kv_heads
        return F.scaled_dot_product_attention(q, k, v, bias, is_causal=self.causal, enable_gqa=grouped)

    def bias(self) -> Tensor:
        """0 or minus infinity, of its own for each row; every query sees the last key."""
        sees = values(ROWS, 1, self.queries, TOKENS, seed=3) > 0
        sees[..., -1] = True
        return torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)


CALLS = [
    pytest.param(Call(), id="all see all"),
    pytest.param(Call(causal=True), id="causal"),
    pytest.param(Call(biased=True), id="bias"),
    pytest.param(Call(6, 2), id="grouped heads"),
    pytest.param(Call(6, 2, causal=True), id="causal, grouped heads"),
    pytest.param(Call(6, 2, queries=11, biased=True), id="bias, grouped heads, fewer queries than keys"),
]


def values(*shape: int, seed: int) -> Tensor:
    """Numbers that bfloat16 holds exactly, so that what is compared is the arithmetic."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def off_by(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("call", CALLS)
def test_values_are_those_of_torch_within_bfloat16(call: Call) -> None:
    operands = call.operands()
    expected = call.run(*operands)
    with explicit_attention():
        found = call.run(*operands)
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    assert off_by(found, expected) < MOST_OFF


@pytest.mark.parametrize("call", CALLS)
def test_gradients_are_those_of_torch_within_bfloat16(call: Call) -> None:
    operands = call.operands()
    expected = call.run(*operands)
    towards = values(*expected.shape, seed=4)
    of_torch = torch.autograd.grad(expected, operands, towards)
    with explicit_attention():
        found = torch.autograd.grad(call.run(*operands), operands, towards.bfloat16())
    for gradient, other in zip(found, of_torch, strict=True):
        assert gradient.dtype == torch.float32
        assert off_by(gradient, other) < MOST_OFF


@pytest.mark.parametrize("call", CALLS)
def test_a_key_that_a_query_does_not_see_has_no_share_at_all(call: Call) -> None:
    q, k, v = call.operands()
    key = TOKENS - 2
    scale = torch.ones(TOKENS, 1)
    scale[key] = 1000
    with explicit_attention():
        changed = (call.run(q, k, v * scale) != call.run(q, k, v)).any(-1)
    sees = torch.ones(ROWS, 1, call.queries, dtype=torch.bool)
    if call.biased:
        sees = call.bias()[..., key] == 0
    if call.causal:
        sees[:, :, :key] = False
    assert changed.equal(sees.expand_as(changed))


def test_the_modules_attention_is_computed_so_without_a_change_to_them() -> None:
    q, k, v = Call(6, 2).operands()
    expected = attention(q, k, v, None, True)
    with explicit_attention():
        found = attention(q, k, v, None, True)
    assert found.dtype == torch.bfloat16
    assert off_by(found, expected) < MOST_OFF


def test_everything_else_is_computed_as_ever_and_so_is_attention_afterwards() -> None:
    call = Call()
    q, k, v = call.operands()
    product, attended = q @ k.transpose(-1, -2), call.run(q, k, v)
    with explicit_attention():
        assert (q @ k.transpose(-1, -2)).equal(product)
    assert call.run(q, k, v).equal(attended)
