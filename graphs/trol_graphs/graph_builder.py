"""Build one ONNX graph with onnx_ir: nodes in order, readable names, weights by reference, one constant per content.

Weights are never loaded: an initializer is a reference into a safetensors file (offset and length).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class WeightFile:
    """Where the weights lie: a safetensors file, the dtype they are stored in, and each tensor's byte offset in it."""

    location: str
    dtype: ir.DataType
    offsets: Mapping[str, int]


@dataclass(frozen=True)
class Parameter:
    """A checkpoint tensor that an operator reads."""

    name: str
    shape: tuple[int, ...]


class GraphBuilder:
    """A graph in the making.

    scope: what the next nodes are named after
    compute: the type of activations; weights stored in another type get one Cast each, kept apart in `casts`
    because they belong in front of everything else
    """

    def __init__(self, compute: ir.DataType, weights: WeightFile) -> None:
        self.compute = compute
        self.weights = weights
        self.scope = ""
        self.nodes: list[ir.Node] = []
        self.casts: dict[str, ir.Node] = {}
        self.initializers: dict[str, ir.Value] = {}
        self._names: dict[str, int] = {}

    def node(
        self, op: str, *inputs: ir.Value | None, domain: str = "", dtype: ir.DataType | None = None, **attributes: Any
    ) -> ir.Value:
        """Append a node of one output; `dtype` is the output's type, by default that of the first input."""
        return self.split_node(op, inputs, 1, domain=domain, dtype=dtype, **attributes)[0]

    def split_node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        num_outputs: int,
        domain: str = "",
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        name = self._unique(f"{self.scope}/{op}")
        made = ir.node(op, list(inputs), attributes, domain=domain, num_outputs=num_outputs, name=name)
        for index, output in enumerate(made.outputs):
            output.name = name if num_outputs == 1 else f"{name}.{index}"
            output.type = ir.TensorType(dtype or inputs[0].dtype)  # type: ignore[union-attr, arg-type]
        self.nodes.append(made)
        return tuple(made.outputs)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`: itself, or one Cast node."""
        if value.dtype == dtype:
            return value
        return self.node("Cast", value, dtype=dtype, to=dtype)

    def constant(self, array: np.ndarray) -> ir.Value:
        """A small initializer, one per content, with a name that says what is in it."""
        shape = "x".join(map(str, array.shape)) or "scalar"
        name = f"const.{array.dtype}.{shape}.{'_'.join(map(str, array.reshape(-1).tolist()))}"
        if name not in self.initializers:
            tensor = ir.tensor(array, name=name)
            self.initializers[name] = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
        return self.initializers[name]

    def ints(self, *numbers: int) -> ir.Value:
        return self.constant(np.array(numbers, np.int64))

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        assert like.dtype is not None
        return self.constant(np.array(number, like.dtype.numpy()))

    def stored(self, parameter: Parameter) -> ir.Value:
        """The initializer of a checkpoint tensor in its stored type."""
        name, shape = parameter.name, ir.Shape(parameter.shape)
        if name not in self.initializers:
            length = int(math.prod(parameter.shape) * self.weights.dtype.itemsize)
            place = (self.weights.location, self.weights.offsets[name], length)
            tensor = ir.ExternalTensor(*place, self.weights.dtype, shape=shape, name=name)
            self.initializers[name] = ir.Value(
                name=name, type=ir.TensorType(self.weights.dtype), shape=shape, const_value=tensor
            )
        return self.initializers[name]

    def weight(self, parameter: Parameter | None) -> ir.Value | None:
        """A checkpoint tensor in the compute type: the initializer itself, or its one Cast."""
        if parameter is None:
            return None
        value = self.stored(parameter)
        if value.dtype == self.compute:
            return value
        if parameter.name not in self.casts:
            self.casts[parameter.name] = self._cast_of(value, parameter)
        return self.casts[parameter.name].outputs[0]

    def _cast_of(self, stored: ir.Value, parameter: Parameter) -> ir.Node:
        name = f"{parameter.name}/{self.compute.name.lower()}"
        cast = ir.node("Cast", [stored], {"to": self.compute}, name=f"{name}/Cast")
        output = cast.outputs[0]
        output.name, output.type, output.shape = name, ir.TensorType(self.compute), ir.Shape(parameter.shape)
        return cast

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}.{count}"
