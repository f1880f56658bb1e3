"""Lower a traced role to ONNX: walk torch's graph once, emit for every operator what `operator_table` says.

Why not torch.onnx.export: at opset 23 and 24 it fails on model-local functions, at 18 it decomposes the norms and adds
Sequence operators. What is lowered here is short, and the emitted graph is exactly the one wanted.
"""

from __future__ import annotations

import re
from typing import Any

import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from trol_graphs.graph_builder import GraphBuilder, Parameter, WeightFile
from trol_graphs.graph_io import Port, Role, graph_inputs, graph_outputs
from trol_graphs.mixer import MIXER_DOMAIN, mixer_function
from trol_graphs.operator_table import OPERATORS
from trol_runtime.model_config import ModelConfig

OPSET = 24  # the first with Attention, RMSNormalization, RotaryEmbedding and TensorScatter together
IR_VERSION = 12  # the one that goes with opset 24; older runtimes refuse newer ones
ROOT = "model."  # the roles hold the model under this name; checkpoint keys begin behind it


def lower(
    program: ExportedProgram, role: Role, config: ModelConfig, compute: ir.DataType, weights: WeightFile
) -> ir.Model:
    """The role as an ONNX model of opset 24 whose names are the same in every run.

    Weights stored in another type than `compute` get one Cast each, at the front of the graph.
    """
    builder = GraphBuilder(compute, weights)
    values = _GraphValues(program, builder, graph_inputs(role, config))
    for node in program.graph.nodes:
        if node.op == "call_function":
            values.emit(node)
    outputs = values.outputs(graph_outputs(role, config))
    graph = ir.Graph(
        values.inputs,
        outputs,
        nodes=[*builder.casts.values(), *builder.nodes],
        initializers=list(builder.initializers.values()),
        opset_imports={"": OPSET, MIXER_DOMAIN: 1},
        name=role,
    )
    functions = [mixer_function(compute)] if role in ("prefill", "extend") else []
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="trol-export", functions=functions)


class _GraphValues:
    """What every node of torch's graph has become: a value of the ONNX graph, several, or a weight."""

    def __init__(self, program: ExportedProgram, builder: GraphBuilder, ports: list[Port]) -> None:
        self._program, self._builder = program, builder
        self._of: dict[Node, Any] = {}
        self._symbols: dict[str, str] = {}  # torch's name of a symbolic axis -> ours
        parameters = program.graph_signature.inputs_to_parameters
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        for node in placeholders:
            if node.name in parameters:
                self._of[node] = Parameter(parameters[node.name].removeprefix(ROOT), tuple(node.meta["val"].shape))
        plain = [node for node in placeholders if node.name not in parameters]
        self.inputs = [self._input(node, port) for node, port in zip(plain, ports, strict=True)]

    def emit(self, node: Node) -> None:
        """Append the ONNX nodes of one torch operator."""
        if node.target not in OPERATORS:
            raise NotImplementedError(f"no lowering for {node.target} ({node.name}): add one to operator_table")
        self._builder.scope = _scope(node)
        args: Any = map_arg(node.args, self._of.__getitem__)
        kwargs: Any = map_arg(node.kwargs, self._of.__getitem__)
        result = self._of[node] = OPERATORS[node.target](self._builder, *args, **kwargs)
        if isinstance(result, tuple):
            for value, traced in zip(result, node.meta["val"], strict=True):
                value.shape = self._shape(traced)
        elif isinstance(result, ir.Value) and result.shape is None:
            result.shape = self._shape(node.meta["val"])

    def outputs(self, ports: list[Port]) -> list[ir.Value]:
        """What the role returns, under the ports' names and types."""
        results: Any = self._program.graph.output_node().args[0]
        values = [self._of[node] for node in results]
        return [self._output(value, port) for value, port in zip(values, ports, strict=True)]

    def _input(self, node: Node, port: Port) -> ir.Value:
        for traced, size in zip(node.meta["val"].shape, port.shape, strict=True):
            if isinstance(size, str):
                self._symbols[str(traced)] = size
        value = ir.Value(name=port.name, type=ir.TensorType(self._type(port)), shape=ir.Shape(port.shape))
        self._of[node] = value
        return value

    def _output(self, value: ir.Value, port: Port) -> ir.Value:
        self._builder.scope = port.name
        value = self._builder.cast(value, self._type(port))
        value.name, value.shape = port.name, ir.Shape(port.shape)
        return value

    def _type(self, port: Port) -> ir.DataType:
        fixed = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64, "bool": ir.DataType.BOOL}
        return fixed.get(port.kind, self._builder.compute)

    def _shape(self, traced: torch.Tensor) -> ir.Shape:
        """torch's symbolic shape in the words of the graph: "1226*crops" for an axis of 1226 tokens per crop."""

        def in_our_words(size: int | torch.SymInt) -> int | str:
            if isinstance(size, int):
                return size
            return re.sub(r"\w+", lambda word: self._symbols.get(word[0], word[0]), str(size))

        return ir.Shape([in_our_words(size) for size in traced.shape])


# What torch.export puts in the place of the module for sizes it reads itself.
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def _scope(node: Node) -> str:
    """Where a node comes from: the module's path, and which of its calls; traversal calls every layer twice.

    torch.export marks the second call of a module with `@1` in the key of the module stack.
    """
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    if _NO_MODULE in stack:
        return "graph"
    key, (path, _) = list(stack.items())[-1]
    path = path.removeprefix(ROOT.rstrip(".")).removeprefix(".") or "graph"
    return f"{path}/second_pass" if "@1" in key else path
