"""All graphs of an engine from its config alone: stored roles, and the CPU form with its role selection. No weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import onnx_ir as ir

from trol_engines.cpu_model import join_roles
from trol_graphs.graph_builder import WeightFile
from trol_graphs.graph_io import Port, Role, graph_inputs, graph_outputs
from trol_graphs.lowering import lower
from trol_graphs.model import build_model
from trol_graphs.trace import trace
from trol_runtime.bundle import ARENA_ENTRY
from trol_runtime.cpu_backend import LANGUAGE_ENTRY, VISION_ENTRY
from trol_runtime.manifest import GraphEntry, GraphValue
from trol_runtime.model_config import ModelConfig

ROLES: tuple[Role, ...] = ("vision", "prefill", "decode", "extend")
DATA_TYPE = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}


@dataclass(frozen=True)
class EngineGraphs:
    """entries: bundle entry -> ONNX bytes; roles: their interfaces for the manifest."""

    entries: dict[str, bytes]
    roles: dict[str, GraphEntry]


def build_graphs(
    config: ModelConfig,
    precision: str,
    offsets: Mapping[str, int],
    step: Callable[[str], AbstractContextManager[object]],
) -> EngineGraphs:
    """Trace every role once and lower it twice: in the engine's precision, and in fp32 for the CPU.

    offsets: byte offset of every tensor in weights.safetensors. step: shown while a role is traced.
    """
    model = build_model(config)
    stored_type = DATA_TYPE[precision]
    weights = WeightFile(ARENA_ENTRY, stored_type, offsets)
    entries: dict[str, bytes] = {}
    cpu: dict[Role, ir.Model] = {}
    for role in ROLES:
        with step(f"trace {role}"):
            program = trace(model, role)
            entries[graph_entry(role)] = _serialized(lower(program, role, config, stored_type, weights))
            # x86 computes in fp32 whatever is stored; rounding activations to fp16 in between would only lose.
            cpu[role] = lower(program, role, config, ir.DataType.FLOAT, weights)
    entries[VISION_ENTRY] = _serialized(cpu["vision"])
    entries[LANGUAGE_ENTRY] = _serialized(join_roles({role: model for role, model in cpu.items() if role != "vision"}))
    return EngineGraphs(entries, {role: _interface(role, config, stored_type) for role in ROLES})


def graph_entry(role: str) -> str:
    """The bundle entry of a role's stored graph."""
    return f"graphs/{role}.onnx"


def _serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def _interface(role: Role, config: ModelConfig, compute: ir.DataType) -> GraphEntry:
    def values(ports: list[Port]) -> tuple[GraphValue, ...]:
        narrow = "float16" if compute == ir.DataType.FLOAT16 else "float32"
        return tuple(
            GraphValue(port.name, narrow if port.kind == "compute" else port.kind, port.shape) for port in ports
        )

    return GraphEntry(graph_entry(role), values(graph_inputs(role, config)), values(graph_outputs(role, config)))
