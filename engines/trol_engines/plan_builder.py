"""Builds a TensorRT plan from a graph: strongly typed, one optimisation profile, and a record of what was built.

Which type a layer computes in is read from the network: of a strongly typed one nothing else can be built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trol_engines.build_progress import progress_monitor
from trol_engines.plan_profile import ShapeRange
from trol_engines.tensorrt_package import TensorRTPackage
from trol_runtime.errors import TrolError
from trol_runtime.one_line import one_line
from trol_runtime.tensorrt_log import quiet_log

# Layers that compute, by the group under which their type is reported; what only moves data is not listed.
_GROUPS = {
    **{"MATRIX_MULTIPLY": "matrix products", "CONVOLUTION": "matrix products", "EINSUM": "matrix products"},
    **{"ATTENTION_INPUT": "attention", "SOFTMAX": "attention"},
    **{"NORMALIZATION": "norms", "REDUCE": "norms"},
    **{"ACTIVATION": "activations", "ROTARY_EMBEDDING": "rotary embedding", "KV_CACHE_UPDATE": "KV cache"},
    **{"PLUGIN_V3": "mixer", "PLUGIN_V2": "mixer"},
}
_WORST = 3  # errors of the parser that are shown


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and what it computes in.

    types: group of layers -> how many of them have which type: {"matrix products": {"HALF": 33}, ...}
    layers: of the network, before the builder fused any
    """

    plan: bytes
    types: Mapping[str, Mapping[str, int]]
    layers: int


def build_plan(
    package: TensorRTPackage,
    graph: bytes,
    ranges: Mapping[str, ShapeRange],
    weights: Mapping[str, NDArray[np.uint8]] | None = None,
    only_sm: str | None = None,
    say_share: Callable[[float], None] | None = None,
) -> BuiltPlan:
    """The plan of one graph.

    graph:   an ONNX model whose external tensors are inputs, or are all among `weights`
    ranges:  of the inputs that have an axis without a size
    weights: the bytes of tensors by name, where the plan is to hold them; they are read, not kept
    only_sm: the only compute capability the plan is for, such as "7.5"; None leaves it to the library
    say_share: is told which share of the build is done, 0 to 1
    Raises TrolError with what the parser or the builder found wrong.
    """
    trt = package.trt
    log = quiet_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    _parse(parser, graph, weights or {}, package)
    _allow_decomposed_attention(trt, network)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32: TF32 keeps 10 bits of 23
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector
    if package.allocates_in_runs:
        # All activations lie in memory that a plan is lent, and its runs can be captured, or it is not built.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if only_sm is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{only_sm.replace('.', '')}"), 0)
    monitor = progress_monitor(trt, say_share or (lambda share: None))
    config.progress_monitor = monitor
    config.add_optimization_profile(_profile(builder, network, ranges))
    plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise TrolError(
            f"{package.target} {package.version} cannot build a plan ({log.last_error}); please report this model"
        )
    return BuiltPlan(bytes(plan), layer_types(network), network.num_layers)


def layer_types(network: Any) -> dict[str, dict[str, int]]:
    """What the layers of a network compute in, by group and type."""
    types: dict[str, Counter[str]] = {}
    for layer in _layers(network):
        group = _GROUPS.get(layer.type.name)
        if group is not None:
            types.setdefault(group, Counter())[layer.get_output(0).dtype.name] += 1
    return {group: dict(sorted(found.items())) for group, found in sorted(types.items())}


def _parse(parser: Any, graph: bytes, weights: Mapping[str, NDArray[np.uint8]], package: TensorRTPackage) -> None:
    if _parsed(parser, graph, weights):
        return
    errors = [_described(parser.get_error(number)) for number in range(parser.num_errors)]
    raise TrolError(
        f"{package.target} {package.version} cannot read a graph ({'; '.join(errors[:_WORST]) or 'no reason given'}); "
        "please report this model"
    )


def _parsed(parser: Any, graph: bytes, weights: Mapping[str, NDArray[np.uint8]]) -> bool:
    """A parser takes weights since TensorRT 10.13 (TensorRTPackage.takes_weights), and graphs without any before."""
    if not weights:
        return bool(parser.parse(graph))
    loaded = parser.load_model_proto(graph)
    for name, data in weights.items():
        loaded = loaded and parser.load_initializer(name, data.ctypes.data, data.nbytes)
    return bool(loaded and parser.parse_model_proto())


def _described(error: Any) -> str:
    """What the parser found wrong, and at which node."""
    node = f"{error.node_operator()} {error.node_name()}".strip()
    return one_line(f"{node}: {error.desc()}" if node else error.desc(), 200)


def _allow_decomposed_attention(trt: Any, network: Any) -> None:
    """Where no fused kernel suits, attention becomes several: without this RTX refuses to build the model."""
    for layer in _layers(network):
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer  # networks hand out the base class
            layer.attention.decomposable = True


def _profile(builder: Any, network: Any, ranges: Mapping[str, ShapeRange]) -> Any:
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if tensor.name in ranges:
            profile.set_shape(tensor.name, *ranges[tensor.name])
    return profile


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(number) for number in range(network.num_layers))
