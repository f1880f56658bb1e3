"""Graphs as the exporter emits them for seeded configs, the weights file beside them, and plain ONNX Runtime on both.

Nothing of the runtime takes part: what runs here runs in any program that has onnxruntime. Traces and graphs are kept
for the whole test run, so copy a model (`promoted` does) before changing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from torch.export import ExportedProgram

from golden.seeded_checkpoint import checkpoint_tensor, config_json, gating_tensors, read_config, tensor_table
from trol_engines.cpu_model import join_roles
from trol_export.arena import ArenaLayout, plan_arena, stream_arena
from trol_export.checkpoint_config import read_model_config
from trol_export.weight_files import TensorInfo
from trol_graphs.graph_io import Role
from trol_graphs.lowering import WeightFile, lower
from trol_graphs.model import build_model, expected_tensors
from trol_graphs.trace import trace
from trol_runtime.model_config import ModelConfig

ROLES: tuple[Role, ...] = ("vision", "prefill", "decode", "extend")
PRECISIONS = ("fp32", "fp16")
WEIGHTS = "weights.safetensors"
DATA_TYPE = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
NUMPY_TYPE: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}
STORED = {"fp32": "F32", "fp16": "F16"}
# What a run returns -> what the next run is fed with.
PAST_OF = {"present": "past_key_values", "present_second_pass": "past_second_pass"}

# No two sizes are equal; three layers of each kind, where the micro configs have two.
DISTINCT: dict[str, dict[str, Any]] = {
    "internlm2": {
        "base": "distinct-internlm2",
        "llm": {"num_hidden_layers": 3},
        "clip": {"num_hidden_layers": 3},
    },
    "phi3": {"base": "distinct-phi3", "llm": {"num_hidden_layers": 3}, "vit": {"num_hidden_layers": 3}},
}

ReadArray = Callable[[str], np.ndarray]  # a float32 tensor by its checkpoint key


def seeded_model(config: str | Mapping[str, Any]) -> tuple[ModelConfig, ReadArray]:
    """What the exporter reads from a seeded checkpoint of `config`, without a file: the model and its tensors."""
    full = read_config(config)
    shapes = {name: entry.shape for name, entry in tensor_table(full).items()}
    last = full["llm"]["num_hidden_layers"] - 1
    gates = gating_tensors(full)

    def read(name: str) -> np.ndarray:
        if name.startswith("trol_gating."):
            return gates[name.replace("trol_gating", str(last))].numpy()
        return checkpoint_tensor(full, name).numpy()

    return read_model_config(config_json(full), {}, shapes), read


def as_torch(read: ReadArray) -> Callable[[str], torch.Tensor]:
    return lambda name: torch.from_numpy(read(name))


# Graphs


@cache
def program(config: ModelConfig, role: Role) -> ExportedProgram:
    return trace(build_model(config), role)


@cache
def layout(config: ModelConfig, precision: str) -> ArenaLayout:
    return plan_arena(TensorInfo(name, STORED[precision], shape) for name, shape in expected_tensors(config).items())


def file_offsets(config: ModelConfig, precision: str) -> dict[str, int]:
    """Byte offset of every tensor in weights.safetensors."""
    arena = layout(config, precision)
    return {name: len(arena.header) + offset for name, offset in arena.offsets.items()}


def lowered(config: ModelConfig, role: Role, precision: str, compute: ir.DataType) -> ir.Model:
    weights = WeightFile(WEIGHTS, DATA_TYPE[precision], file_offsets(config, precision))
    return lower(program(config, role), role, config, compute, weights)


@cache
def stored_graph(config: ModelConfig, role: Role, precision: str = "fp32") -> ModelProto:
    """The graph in graphs/ROLE.onnx."""
    return ir.to_proto(lowered(config, role, precision, DATA_TYPE[precision]))


@cache
def cpu_language(config: ModelConfig, precision: str = "fp32") -> ModelProto:
    """The CPU form of the language model's roles in one model."""
    roles: dict[str, ir.Model] = {
        role: lowered(config, role, precision, ir.DataType.FLOAT) for role in ROLES if role != "vision"
    }
    return ir.to_proto(join_roles(roles))


def subgraphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from subgraphs(attribute.g)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of all graphs and functions of `model`."""
    for graph in subgraphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def external(initializer: TensorProto) -> dict[str, str]:
    """location, offset, length; empty for a constant stored in the graph."""
    return {entry.key: entry.value for entry in initializer.external_data}


def promoted(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """A copy of `model` whose values `names` are outputs as well."""
    copy = ModelProto.FromString(model.SerializeToString())
    known = {value.name: value for value in copy.graph.value_info}
    copy.graph.output.extend(known[name] for name in names)
    return copy


# Weights, and running


def write_weights(directory: Path, config: ModelConfig, precision: str, read: ReadArray) -> Path:
    """weights.safetensors, rounded to nearest even where `precision` is fp16."""
    arena = layout(config, precision)
    dtype = NUMPY_TYPE[precision]

    def source(name: str) -> Iterator[memoryview]:
        yield np.ascontiguousarray(read(name).astype(dtype)).data

    with (directory / WEIGHTS).open("wb") as file:
        file.write(arena.header)
        for chunk in stream_arena(arena, source):
            file.write(chunk)
    return directory


class PlainSession:
    """onnxruntime on `model` beside its weights, outputs by name; no setting of the runtime takes part."""

    def __init__(self, model: ModelProto, folder: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # TensorScatter warns when it is run without in-place buffers
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(None, dict(feeds)), strict=True))


def cache_feeds(
    config: ModelConfig, length: int, batch: int = 1, precision: str = "fp32", kind: str = "past_key_values"
) -> dict[str, np.ndarray]:
    """Empty caches of `length` positions; kind: of the first pass, or "past_second_pass"."""
    decoder = config.decoder
    shape = (batch, decoder.kv_heads, length, decoder.head_dim)
    names = [f"{kind}.{layer}.{part}" for layer in range(decoder.layers) for part in ("key", "value")]
    return {name: np.zeros(shape, NUMPY_TYPE[precision]) for name in names}


def both_caches(config: ModelConfig, length: int, precision: str = "fp32") -> dict[str, np.ndarray]:
    """Empty caches of both passes, for one row."""
    kinds = [cache_feeds(config, length, precision=precision, kind=kind) for kind in PAST_OF.values()]
    return {name: cache for caches in kinds for name, cache in caches.items()}


def present_as_past(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The caches a run returned, as the next run's inputs."""
    places = {name: name.partition(".") for name in outputs}
    return {f"{PAST_OF[kind]}.{place}": outputs[name] for name, (kind, _, place) in places.items() if kind in PAST_OF}


def weight_initializers(model: ModelProto) -> dict[str, TensorProto]:
    """The external initializers of the main graph, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer if external(tensor)}
