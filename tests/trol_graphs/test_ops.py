"""The operators' eager arithmetic, its gradients, what they refuse, and that each is one node of a traced graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trol_graphs.ops import attention, cache_write, mixer, rms_norm, rotary_embedding


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


# In training and in a trace


class Call(NamedTuple):
    """An operator with arguments, of which those that are floating-point tensors can be trained."""

    operator: Callable[..., Tensor]
    arguments: tuple[Any, ...]

    @property
    def trained(self) -> list[int]:
        return [i for i, x in enumerate(self.arguments) if isinstance(x, Tensor) and x.is_floating_point()]

    def of(self, *trained: Tensor) -> Tensor:
        """The result with other values for what can be trained."""
        arguments = list(self.arguments)
        for i, values in zip(self.trained, trained, strict=True):
            arguments[i] = values
        return self.operator(*arguments)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


MASK = torch.tensor([[True, False, True], [True, True, True]])[None, None]
CALLS = {
    "rms_norm": Call(rms_norm, (drawn(3, 6), drawn(6, seed=1), 1e-5)),
    "rotary_embedding": Call(
        rotary_embedding, (drawn(2, 3, 4, 6), drawn(2, 4, 3, seed=1).cos(), drawn(2, 4, 3, seed=1).sin())
    ),
    "attention": Call(attention, (drawn(2, 4, 3, 6), drawn(2, 2, 3, 6, seed=1), drawn(2, 2, 3, 6, seed=2), None, True)),
    "attention, masked": Call(
        attention, (drawn(2, 4, 2, 6), drawn(2, 2, 3, 6, seed=1), drawn(2, 2, 3, 6, seed=2), MASK, False)
    ),
    "cache_write": Call(cache_write, (drawn(2, 2, 5, 3), drawn(2, 2, 2, 3, seed=1), None)),
    "cache_write, indexed": Call(cache_write, (drawn(2, 2, 5, 3), drawn(2, 2, 2, 3, seed=1), torch.tensor([0, 3]))),
    "mixer": Call(mixer, (drawn(4, 6), drawn(4, 6, seed=1), drawn(1, 6, seed=2), drawn(1, seed=3))),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@calls
def test_gradients_are_those_of_the_arithmetic(call: Call) -> None:
    operands = [call.arguments[i].clone().requires_grad_(True) for i in call.trained]
    if call.operator is rms_norm:
        # Its statistic is fp32 whatever its arguments are: steps must be large, and differences are known to 1e-3.
        assert torch.autograd.gradcheck(call.of, operands, eps=1e-2, atol=2e-3, rtol=0)
    else:
        assert torch.autograd.gradcheck(call.of, operands)


def test_the_gradient_of_rms_norm_is_that_of_the_formula() -> None:
    x, weight = (values.requires_grad_(True) for values in (drawn(3, 6).float(), drawn(6, seed=1).float()))
    towards = drawn(3, 6, seed=2).float()
    found = torch.autograd.grad(rms_norm(x, weight, 0.25), (x, weight), towards)
    x64, weight64, towards64 = (values.detach().double() for values in (x, weight, towards))
    root = (x64.pow(2).mean(-1, keepdim=True) + 0.25).sqrt()
    scaled = weight64 * towards64
    of_x = scaled / root - x64 * (scaled * x64).mean(-1, keepdim=True) / root**3
    of_weight = (towards64 * x64 / root).sum(0)
    for gradient, expected in zip(found, (of_x, of_weight), strict=True):
        # Some roundings of fp32 for values up to 4.
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=2e-6)


class Single(nn.Module):
    """A module that is one call of an operator."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, *trained: Tensor) -> Tensor:
        return self.call.of(*trained)


@calls
def test_in_a_trace_an_operator_is_one_node(call: Call) -> None:
    operands = tuple(call.arguments[i].float() for i in call.trained)
    program = torch.export.export(Single(call), operands, strict=False)
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert nodes == [getattr(torch.ops.trol, call.operator.__name__).default]
    (result,) = program.graph.output_node().args[0]
    assert result.meta["val"].shape == call.of(*operands).shape
    torch.testing.assert_close(program.module()(*operands), call.of(*operands))
