"""The concepts that become exactly one ONNX node each, with their eager arithmetic.

Eager bodies are the reference for fp32, and what training differentiates; while a graph is traced each stands there as
one custom operator, which `lowering` maps onto the ONNX operator (or model-local function) named in its docstring.

Shapes: b rows, h query heads, g key/value heads, s queries, m keys, L cache length, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")


def one_node(body: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`body`, and in its place the operator `trol::<name of body>` while a graph is traced.

    Every such operator returns the shape of its first argument. It has no gradient of its own: outside a trace the body
    runs as it stands.
    """
    operator = torch.library.custom_op(f"trol::{body.__name__}", body, mutates_args=())
    operator.register_fake(lambda first, *_: torch.empty_like(first))

    @wraps(body)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return (operator if torch.compiler.is_exporting() else body)(*args, **kwargs)

    return call


@one_node
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`RMSNormalization`: x / rms(x) * weight over the last axis; the statistic is fp32."""
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@one_node
def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`RotaryEmbedding`: rotate (a, b) halves of the last axis; x (b, heads, s, d), cos and sin (b, s, d/2)."""
    cos, sin = cos[:, None], sin[:, None]
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


@one_node
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """`Attention`: softmax(q k^T / sqrt(d)) v, query head j reading key/value head j // (h/g).

    q (b, h, s, d); k, v (b, g, m, d); mask bool, True = attend, broadcast to (b, h, s, m); -> (b, h, s, d).
    A causal call is square and has no mask: the two together are aligned differently by different runtimes.
    """
    if causal and (mask is not None or q.shape[2] != k.shape[2]):
        raise ValueError("causal attention must be square and without a mask")
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


@one_node
def cache_write(cache: Tensor, rows: Tensor, write_index: Tensor | None) -> Tensor:
    """`TensorScatter`: cache (b, g, L, d) with rows (b, g, s, d) written from write_index[row] on (None: from 0)."""
    written = cache.clone()
    for row in range(cache.shape[0]):
        start = 0 if write_index is None else int(write_index[row])
        written[row, :, start : start + rows.shape[2]] = rows[row]
    return written


@one_node
def mixer(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`trol::Mixer`: blend both passes of a layer, token by token (paper: section 3.2, "TroL-Mixer").

    first, second (tokens, hidden); weight (1, hidden), bias (1): the gate reads the raw first pass, without a norm,
    and its value is the weight of the SECOND pass.
    """
    gate = gate_value(first, weight, bias)
    return first * (1 - gate) + second * gate


def gate_value(first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The gate in (0, 1), (tokens, 1): 0.5 tanh(w . x1 + b) + 0.5."""
    return 0.5 * torch.tanh(F.linear(first, weight, bias)) + 0.5
