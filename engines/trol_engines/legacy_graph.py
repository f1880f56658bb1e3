"""A role's graph for TensorRT before 10.15, JetPack 6's 10.3 among them: opset 17, nothing that ONNX learned later.

Attention, norms and rotary embedding are written out, the mixer's body stands in the place of its function. Caches are
only read: a graph gives the new keys and values as rows of their own, and whoever runs it puts them into the cache.

    prefill: takes no cache; present.* are (1, kv heads, s, d)
    decode:  attention_mask (b, 1, 1, L) is True at the tokens before the new one; present.* are (b, kv heads, 1, d)
    extend:  attention_mask (1, 1, 1, L) is True at the tokens of the prefix; present*.* are (1, kv heads, s, d)

Each token attends to itself and to what came before it among the new ones; no graph takes `write_index`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes.common import InlinePass

from trol_runtime.cache_names import PAST, PAST_SECOND_PASS

OPSET = 17  # LayerNormalization's, and within what TensorRT 10.3 parses
IR_VERSION = 8  # goes with opset 17

_IDS, _MASK, _WRITE_INDEX = "input_ids", "attention_mask", "write_index"
_CACHE_AXIS, _LAST = 2, -1


def to_legacy(model: ir.Model) -> ir.Model:
    """The model in opset 17; consumes `model`. Raises NotImplementedError for an operator that has no older form."""
    model = InlinePass()(model).model
    graph = model.graph
    legacy = _Legacy(graph)
    for node in list(graph):
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is not None:
            rewrite(legacy, node)
    _give_new_rows(graph)
    _drop_unused_inputs(graph)
    graph.opset_imports.clear()
    graph.opset_imports[""] = OPSET
    _require_known(graph)
    model.ir_version = IR_VERSION
    model.functions.clear()
    return model


class _Legacy:
    """A graph being rewritten: new nodes go in front of the one they replace, and are named after it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.inputs = {value.name: value for value in graph.inputs}
        self._at: ir.Node | None = None
        self._new: list[ir.Node] = []
        self._bias: dict[str, ir.Value] = {}

    def replace(self, node: ir.Node, make: Callable[[], ir.Value]) -> None:
        """Put the nodes that `make` appends, and its value, in the place of a node of one output."""
        self._at, self._new = node, []
        value = make()
        value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
        convenience.replace_nodes_and_values(self.graph, node, [node], self._new, [node.outputs[0]], [value])

    def node(self, op: str, *inputs: ir.Value, dtype: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        """Append a node of one output, of its first input's type unless told."""
        return self.nodes(op, *inputs, dtype=dtype, **attributes)[0]

    def nodes(
        self, op: str, *inputs: ir.Value, outputs: int = 1, dtype: ir.DataType | None = None, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        assert self._at is not None
        made = ir.node(op, list(inputs), attributes, num_outputs=outputs, name=f"{self._at.name}/{op}.{len(self._new)}")
        for number, output in enumerate(made.outputs):
            output.name = f"{made.name}.{number}"
            output.type = ir.TensorType(dtype or inputs[0].dtype)  # type: ignore[arg-type]
        self._new.append(made)
        return tuple(made.outputs)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return value if value.dtype == dtype else self.node("Cast", value, dtype=dtype, to=dtype)

    def constant(self, values: Any, dtype: ir.DataType) -> ir.Value:
        """A small initializer, one per content."""
        array = np.asarray(values, dtype.numpy())
        name = (
            f"const.{array.dtype}.{'x'.join(map(str, array.shape)) or 'scalar'}.{'_'.join(map(str, array.reshape(-1)))}"
        )
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            self.graph.register_initializer(
                ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
            )
        return self.graph.initializers[name]

    def ints(self, *values: int) -> ir.Value:
        return self.constant(values, ir.DataType.INT64)

    def own_bias(self, dtype: ir.DataType) -> ir.Value:
        """What is added to the scores of new tokens for new tokens, (s, s): minus infinity for later ones."""

        def make() -> ir.Value:
            count = self.node("Gather", self.node("Shape", self.inputs[_IDS], dtype=ir.DataType.INT64), self.ints(1))
            square = self.node("Concat", count, count, axis=0)
            return self.node(
                "Trilu",
                self.node("Expand", self.constant(-math.inf, dtype), square),
                self.constant(1, ir.DataType.INT64),
                upper=1,
            )

        return self._once("own", make)

    def bias_behind_cache(self, dtype: ir.DataType) -> ir.Value:
        """What is added to the scores of new tokens for [cache | new tokens]: (b, 1, s, L + s)."""

        def make() -> ir.Value:
            zero, never = self.constant(0.0, dtype), self.constant(-math.inf, dtype)
            past = self.node("Where", self.inputs[_MASK], zero, never, dtype=dtype)
            if _IDS not in self.inputs:  # decode: one token per row, which sees itself
                shape = self.node("Shape", past, dtype=ir.DataType.INT64)
                rows_alone = self.node("Gather", shape, self.ints(0))
                one_each = self.node("Concat", rows_alone, self.ints(1, 1, 1), axis=0)
                return self.node("Concat", past, self.node("Expand", zero, one_each), axis=_LAST)
            own = self.node("Unsqueeze", self.own_bias(dtype), self.ints(0, 1))
            count = self.node("Gather", self.node("Shape", own, dtype=ir.DataType.INT64), self.ints(2))
            shape = self.node("Concat", self.ints(1, 1), count, self.ints(1), axis=0)
            return self.node("Concat", self.node("Expand", past, shape), own, axis=_LAST)

        return self._once("behind cache", make)

    def _once(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        """The value is the same in all layers: the first that asks has it made."""
        if name not in self._bias:
            self._bias[name] = make()
        return self._bias[name]


def _rms_norm(legacy: _Legacy, node: ir.Node) -> None:
    """In fp32, as the operator's stash type has it; scaled in the type of the activations."""
    x, scale = _inputs(node)
    epsilon = node.attributes["epsilon"].as_float()
    dtype = _dtype(x)

    def make() -> ir.Value:
        wide = legacy.cast(x, ir.DataType.FLOAT)
        mean = legacy.node("ReduceMean", legacy.node("Mul", wide, wide), axes=[_LAST], keepdims=1)
        root = legacy.node("Sqrt", legacy.node("Add", mean, legacy.constant(epsilon, ir.DataType.FLOAT)))
        return legacy.node("Mul", legacy.cast(legacy.node("Div", wide, root), dtype), scale)

    legacy.replace(node, make)


def _rotary_embedding(legacy: _Legacy, node: ir.Node) -> None:
    """x (b, h, s, d); cos, sin (b, s, d/2): the halves of a head are the parts of d/2 complex numbers."""
    x, cos, sin = _inputs(node)

    def make() -> ir.Value:
        real, imaginary = legacy.nodes("Split", x, outputs=2, axis=_LAST)
        cosine, sine = (legacy.node("Unsqueeze", table, legacy.ints(1)) for table in (cos, sin))
        turned_real = legacy.node("Sub", legacy.node("Mul", real, cosine), legacy.node("Mul", imaginary, sine))
        turned_imaginary = legacy.node("Add", legacy.node("Mul", real, sine), legacy.node("Mul", imaginary, cosine))
        return legacy.node("Concat", turned_real, turned_imaginary, axis=_LAST)

    legacy.replace(node, make)


def _attention(legacy: _Legacy, node: ir.Node) -> None:
    """q (b, h, s, d); k, v (b, g, m, d), each read by h/g heads; softmax in fp32."""
    q, k, v, *mask = _inputs(node)
    heads, width, groups = _size(q, 1), _size(q, 3), _size(k, 1)
    dtype = _dtype(q)
    causal = "is_causal" in node.attributes and node.attributes["is_causal"].as_int() == 1

    def make() -> ir.Value:
        keys, values, bias = k, v, None
        if mask:
            keys, values = (_behind_cache(legacy, written) for written in (k, v))
            bias = legacy.bias_behind_cache(ir.DataType.FLOAT)
        elif causal:
            bias = legacy.own_bias(ir.DataType.FLOAT)
        scaled = legacy.node("Mul", q, legacy.constant(1 / math.sqrt(width), dtype))
        if heads != groups:
            scaled = legacy.node("Reshape", scaled, legacy.ints(0, groups, heads // groups, -1, width))
            keys, values = (legacy.node("Unsqueeze", x, legacy.ints(2)) for x in (keys, values))
            if mask:
                bias = legacy.node("Unsqueeze", bias, legacy.ints(2))  # type: ignore[arg-type]
        order = [0, 1, 2, 4, 3] if heads != groups else [0, 1, 3, 2]
        scores = legacy.node("MatMul", scaled, legacy.node("Transpose", keys, perm=order))
        scores = legacy.cast(scores, ir.DataType.FLOAT)
        if bias is not None:
            scores = legacy.node("Add", scores, bias)
        shares = legacy.cast(legacy.node("Softmax", scores, axis=_LAST), dtype)
        attended = legacy.node("MatMul", shares, values)
        if heads == groups:
            return attended
        return legacy.node("Reshape", attended, legacy.ints(0, heads, -1, width))

    legacy.replace(node, make)


def _behind_cache(legacy: _Legacy, written: ir.Value) -> ir.Value:
    """[cache | new rows] in the place of a cache with the new rows written into it."""
    scatter = written.producer()
    assert scatter is not None
    past, new, *_ = _inputs(scatter)
    return legacy.node("Concat", past, new, axis=_CACHE_AXIS)


def _gelu(legacy: _Legacy, node: ir.Node) -> None:
    """0.5 x (1 + erf(x / sqrt 2))"""
    (x,) = _inputs(node)
    dtype = _dtype(x)
    approximate = node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() != "none":
        raise NotImplementedError(f"{node.name}: Gelu by {approximate.as_string()}")

    def make() -> ir.Value:
        error = legacy.node("Erf", legacy.node("Div", x, legacy.constant(math.sqrt(2), dtype)))
        one_more = legacy.node("Add", error, legacy.constant(1.0, dtype))
        return legacy.node("Mul", legacy.node("Mul", x, one_more), legacy.constant(0.5, dtype))

    legacy.replace(node, make)


def _cum_sum(legacy: _Legacy, node: ir.Node) -> None:
    """Of counts, in fp32: before TensorRT 10.8 the parser sums floats alone, which are exact up to 2^24."""
    counts, axis = _inputs(node)
    dtype = _dtype(counts)

    def make() -> ir.Value:
        return legacy.cast(legacy.node("CumSum", legacy.cast(counts, ir.DataType.FLOAT), axis), dtype)

    legacy.replace(node, make)


def _split(legacy: _Legacy, node: ir.Node) -> None:
    """Before opset 18 the number of equal parts is that of the outputs."""
    del legacy
    node.attributes.pop("num_outputs", None)


_REWRITES: dict[str, Callable[[_Legacy, ir.Node], None]] = {
    "RMSNormalization": _rms_norm,
    "RotaryEmbedding": _rotary_embedding,
    "Attention": _attention,
    "Gelu": _gelu,
    "CumSum": _cum_sum,
    "Split": _split,
}


def _give_new_rows(graph: ir.Graph) -> None:
    """The outputs of cache writes become what was to be written."""
    for node in [node for node in graph if node.op_type == "TensorScatter"]:
        written, new = node.outputs[0], _inputs(node)[1]
        graph.outputs[graph.outputs.index(written)] = new
        new.name = written.name
        graph.remove(node, safe=True)


def _drop_unused_inputs(graph: ir.Graph) -> None:
    """Where an input was read by a cache write alone, nothing reads it now; the prefix's mask needs one row."""
    caches = (f"{PAST}.", f"{PAST_SECOND_PASS}.")
    for value in list(graph.inputs):
        if not value.uses() and (value.name == _WRITE_INDEX or str(value.name).startswith(caches)):
            graph.inputs.remove(value)
        elif value.name == _MASK and value.shape is not None:
            rows, heads, _, length = value.shape
            value.shape = ir.Shape([rows, heads, 1, length])


def _require_known(graph: ir.Graph) -> None:
    later = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter", "Gelu", "Mixer"}
    left = sorted({node.op_type for node in graph} & later)
    if left or any(node.domain for node in graph):
        raise NotImplementedError(f"no form in opset {OPSET} of {', '.join(left) or 'an operator of another domain'}")


def _inputs(node: ir.Node) -> list[ir.Value]:
    values = [value for value in node.inputs if value is not None]
    assert len(values) == len(node.inputs)
    return values


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype


def _size(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size
