"""The table of the lowering: one small function per torch operator, from its arguments to ONNX nodes.

Arguments come as torch gave them, with values of the graph in the place of tensors and `Parameter` in that of weights.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch

import trol_graphs.named_values
import trol_graphs.ops  # noqa: F401  both register torch.ops.trol
from trol_graphs.graph_builder import GraphBuilder, Parameter
from trol_graphs.mixer import MIXER_DOMAIN

Emit = Callable[..., "ir.Value | Sequence[ir.Value] | None"]
EmitT = TypeVar("EmitT", bound=Emit)
OPERATORS: dict[Any, Emit] = {}

aten, trol = torch.ops.aten, torch.ops.trol


def _lowers(target: Any) -> Callable[[EmitT], EmitT]:
    def register(emit: EmitT) -> EmitT:
        OPERATORS[target] = emit
        return emit

    return register


@_lowers(aten.linear.default)
def _linear(g: GraphBuilder, x: ir.Value, weight: Parameter, bias: Parameter | None = None) -> ir.Value:
    """The one linear: the checkpoint's own [out, in] matrix, never transposed."""
    inputs = [x, g.weight(weight)] + ([g.weight(bias)] if bias else [])
    return g.node("Gemm", *inputs, transB=1)


@_lowers(aten.embedding.default)
def _embedding(g: GraphBuilder, weight: Parameter, ids: ir.Value) -> ir.Value:
    # Gather from the stored table, then cast the few rows: a cast table would be a second copy of the largest tensor.
    return g.cast(g.node("Gather", g.stored(weight), ids, axis=0), g.compute)


@_lowers(aten.conv2d.default)
def _conv2d(
    g: GraphBuilder, x: ir.Value, weight: Parameter, bias: Parameter | None = None, stride: Sequence[int] = (1, 1)
) -> ir.Value:
    inputs = [g.cast(x, g.compute), g.weight(weight)] + ([g.weight(bias)] if bias else [])
    return g.node("Conv", *inputs, kernel_shape=list(weight.shape[2:]), strides=list(stride))


@_lowers(aten.layer_norm.default)
def _layer_norm(
    g: GraphBuilder, x: ir.Value, shape: Sequence[int], weight: Parameter, bias: Parameter, eps: float, *cudnn: bool
) -> ir.Value:
    return g.node("LayerNormalization", x, g.weight(weight), g.weight(bias), axis=-1, epsilon=eps)


@_lowers(trol.rms_norm.default)
def _rms_norm(g: GraphBuilder, x: ir.Value, weight: Parameter, eps: float) -> ir.Value:
    return g.node("RMSNormalization", x, g.weight(weight), axis=-1, epsilon=eps)


@_lowers(trol.rotary_embedding.default)
def _rotary_embedding(g: GraphBuilder, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    # The tables are fp32 at every precision, and the operator wants one type.
    rotated = g.node("RotaryEmbedding", g.cast(x, ir.DataType.FLOAT), cos, sin)
    return g.cast(rotated, g.compute)


@_lowers(trol.attention.default)
def _attention(g: GraphBuilder, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, causal: bool) -> ir.Value:
    # No softmax_precision: TensorRT's parser refuses the attribute, and fp16 graphs hold their budget without it.
    inputs = [q, k, v] if mask is None else [q, k, v, mask]
    return g.node("Attention", *inputs, is_causal=int(causal))


@_lowers(trol.cache_write.default)
def _cache_write(g: GraphBuilder, cache: ir.Value, rows: ir.Value, write_index: ir.Value | None) -> ir.Value:
    inputs = [cache, rows] if write_index is None else [cache, rows, write_index]
    return g.node("TensorScatter", *inputs, axis=-2, mode="linear")


@_lowers(trol.mixer.default)
def _mixer(g: GraphBuilder, first: ir.Value, second: ir.Value, weight: Parameter, bias: Parameter) -> ir.Value:
    return g.node("Mixer", first, second, g.weight(weight), g.weight(bias), domain=MIXER_DOMAIN)


@_lowers(trol.named.default)
def _named(g: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    x.name = name
    return x


@_lowers(aten.add.Tensor)
def _add(g: GraphBuilder, a: ir.Value | Parameter, b: ir.Value | Parameter) -> ir.Value:
    return g.node("Add", *_operands(g, a, b))


@_lowers(aten.mul.Tensor)
def _mul(g: GraphBuilder, a: ir.Value | Parameter, b: ir.Value | Parameter | float) -> ir.Value:
    return g.node("Mul", *_operands(g, a, b))


@_lowers(aten.sub.Tensor)
def _sub(g: GraphBuilder, a: ir.Value, b: ir.Value | float) -> ir.Value:
    return g.node("Sub", *_operands(g, a, b))


@_lowers(aten.eq.Scalar)
def _equal(g: GraphBuilder, a: ir.Value, b: float) -> ir.Value:
    return g.node("Equal", *_operands(g, a, b), dtype=ir.DataType.BOOL)


@_lowers(aten.clamp.default)
def _clamp_from_below(g: GraphBuilder, x: ir.Value, min: float) -> ir.Value:
    return g.node("Max", x, g.scalar(min, x))


def _operands(g: GraphBuilder, *operands: ir.Value | Parameter | float) -> list[ir.Value | None]:
    like = next(operand for operand in operands if isinstance(operand, ir.Value))
    return [
        operand if isinstance(operand, ir.Value)
        else g.weight(operand) if isinstance(operand, Parameter)
        else g.scalar(operand, like)
        for operand in operands
    ]  # fmt: skip


@_lowers(aten.where.self)
def _where(g: GraphBuilder, condition: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    return g.node("Where", condition, a, b, dtype=a.dtype)


@_lowers(aten.index_select.default)
def _index_select(g: GraphBuilder, x: ir.Value, axis: int, index: ir.Value) -> ir.Value:
    return g.node("Gather", x, index, axis=axis)


@_lowers(aten.cumsum.default)
def _cumsum(g: GraphBuilder, x: ir.Value, axis: int) -> ir.Value:
    return g.node("CumSum", x, g.constant(np.array(axis, np.int64)))


@_lowers(aten.silu.default)
def _silu(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.node("Mul", x, g.node("Sigmoid", x))


@_lowers(aten.sigmoid.default)
def _sigmoid(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.node("Sigmoid", x)


@_lowers(aten.gelu.default)
def _gelu(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.node("Gelu", x)  # exact (erf) is both sides' default


@_lowers(aten.to.dtype)
def _to(g: GraphBuilder, x: ir.Value, dtype: torch.dtype) -> ir.Value:
    return g.cast(x, {torch.float32: g.compute, torch.int64: ir.DataType.INT64}[dtype])


@_lowers(aten.reshape.default)
def _reshape(g: GraphBuilder, x: ir.Value | Parameter, shape: Sequence[int]) -> ir.Value:
    value = g.weight(x) if isinstance(x, Parameter) else x
    return g.node("Reshape", value, g.ints(*shape))


@_lowers(aten.unsqueeze.default)
def _unsqueeze(g: GraphBuilder, x: ir.Value, axis: int) -> ir.Value:
    return g.node("Unsqueeze", x, g.ints(axis))


@_lowers(aten.transpose.int)
def _transpose(g: GraphBuilder, x: ir.Value, a: int, b: int) -> ir.Value:
    assert x.shape is not None
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return g.node("Transpose", x, perm=order)


_END = 2**63 - 1  # torch's "to the end"


@_lowers(aten.slice.Tensor)
def _slice(g: GraphBuilder, x: ir.Value, axis: int, start: int, end: int) -> ir.Value:
    if (start, end) == (0, _END):
        return x
    return g.node("Slice", x, g.ints(start), g.ints(end), g.ints(axis))


@_lowers(aten.split_with_sizes.default)
def _split(g: GraphBuilder, x: ir.Value, sizes: Sequence[int], axis: int) -> tuple[ir.Value, ...]:
    return g.split_node("Split", [x, g.ints(*sizes)], len(sizes), axis=axis)


@_lowers(aten.chunk.default)
def _chunk(g: GraphBuilder, x: ir.Value, parts: int, axis: int) -> tuple[ir.Value, ...]:
    assert x.shape is not None
    size = x.shape[axis]
    assert isinstance(size, int)
    return _split(g, x, [size // parts] * parts, axis)


@_lowers(operator.getitem)
def _getitem(g: GraphBuilder, values: Sequence[ir.Value], index: int) -> ir.Value:
    return values[index]


@_lowers(aten.cat.default)
def _cat(g: GraphBuilder, values: Sequence[ir.Value], axis: int = 0) -> ir.Value:
    return g.node("Concat", *values, axis=axis)


@_lowers(aten.sym_size.int)
def _sym_size(g: GraphBuilder, x: ir.Value, axis: int) -> ir.Value:
    """The size of a symbolic axis as a tensor of one element."""
    size = g.node("Shape", x, dtype=ir.DataType.INT64, start=axis, end=axis + 1)
    size.shape = ir.Shape([1])
    return size


@_lowers(aten.expand.default)
def _expand(g: GraphBuilder, x: ir.Value | Parameter, sizes: Sequence[int | ir.Value]) -> ir.Value:
    # -1 keeps an axis; ONNX's Expand broadcasts both ways, so 1 does that.
    value = g.weight(x) if isinstance(x, Parameter) else x
    parts = [size if isinstance(size, ir.Value) else g.ints(1 if size == -1 else size) for size in sizes]
    shape = g.node("Concat", *parts, axis=0)
    shape.shape = ir.Shape([len(parts)])
    return g.node("Expand", value, shape)


@_lowers(aten._assert_tensor_metadata.default)
def _nothing(g: GraphBuilder, *args: Any, **kwargs: Any) -> None:
    """A check torch adds while tracing; nothing to compute."""
