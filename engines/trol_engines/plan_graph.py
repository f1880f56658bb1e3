"""The graph of a TensorRT plan: a role's stored graph with a constant cache length, its weights as inputs if so asked.

Weights as inputs of several plans lie on the device once; inside plans each of them holds a copy of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from trol_runtime.axis_names import CACHE


def read_graph(stored: bytes) -> ir.Model:
    """graphs/ROLE.onnx, its weights as references into weights.safetensors."""
    return ir.from_proto(onnx.ModelProto.FromString(stored))


def as_bytes(model: ir.Model) -> bytes:
    """The model as TensorRT's parser reads it; equal models are equal bytes."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def fix_cache_length(model: ir.Model, length: int) -> None:
    """Give every cache, and the mask over it, `length` positions.

    TensorRT updates a cache in place only where its sequence axis is static (IKVCacheUpdateLayer).
    """
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([length if _is_axis(size, CACHE) else size for size in value.shape])


def weights_to_inputs(model: ir.Model) -> list[str]:
    """Make every tensor of weights.safetensors an input behind the role's own; their names, in the graph's order.

    Constants that lie in the graph itself stay: shapes and numbers that a build folds.
    """
    graph = model.graph
    weights = external_weights(model)
    for name in weights:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    return weights


def external_weights(model: ir.Model) -> list[str]:
    """Names of the tensors that lie in weights.safetensors, in the graph's order."""
    return [
        name for name, value in model.graph.initializers.items() if isinstance(value.const_value, ir.ExternalTensor)
    ]


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _is_axis(size: object, name: str) -> bool:
    return isinstance(size, ir.SymbolicDim) and size.value == name
