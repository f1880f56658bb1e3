"""The graph of a TensorRT plan: a role's stored graph with a constant cache length, in the form that TensorRT reads,
its weights as inputs if so asked.

Weights as inputs of several plans lie on the device once; inside plans each of them holds a copy of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from trol_engines.legacy_graph import to_legacy
from trol_runtime.axis_names import CACHE
from trol_runtime.cache_names import PAST, cache_names
from trol_runtime.device_cache import aligned_length
from trol_runtime.manifest import GraphValue, Manifest, Opset


def plan_graph(stored: bytes, cache_length: int, opset: Opset) -> ir.Model:
    """What a plan is built from: graphs/ROLE.onnx in one of its forms, weights still as references."""
    model = read_graph(stored)
    if opset == "legacy":
        model = to_legacy(model)
    fix_cache_length(model, cache_length)
    return model


def cache_length(manifest: Manifest) -> int:
    """Of the caches of plans: the engine's limit or a few tokens more, so that TensorRT takes every row's address."""
    name = cache_names(PAST, 1)[0]
    keys = next(value for value in manifest.graphs["decode"].inputs if value.name == name)
    _, heads, _, width = keys.shape
    return aligned_length(manifest.limits.max_seq, int(heads) * int(width) * np.dtype(keys.dtype).itemsize)


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


def input_values(model: ir.Model) -> tuple[GraphValue, ...]:
    """The inputs as a manifest has them; those of a legacy graph are not the stored one's."""
    return tuple(
        GraphValue(
            str(value.name),
            value.dtype.numpy().name if value.dtype else "",
            tuple(size if isinstance(size, int) else str(size.value) for size in value.shape or ()),
        )
        for value in model.graph.inputs
    )


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
