"""The CPU target: prefill and decode as the two branches of one `If`, over one set of weights.

ONNX Runtime packs or casts a weight once per session, so two sessions would hold two copies; one session whose branches
share outer-scope initializers holds one. The model selects its role by an integer input, so that a further role fits
in.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx_ir import convenience

from trol_runtime.cpu_backend import ROLE_INPUT, ROLE_NUMBER

BRANCH = {"prefill": "then_branch", "decode": "else_branch"}
SELECT_NODE = "role_select"


def join_roles(prefill: ir.Model, decode: ir.Model) -> ir.Model:
    """One model with the inputs of both roles (those of the same name are one) and the outputs they have in common.

    `role` is an int64 scalar of `ROLE_NUMBER`; inputs of the role not taken are ignored but must be fed. Initializers,
    and the Casts of initializers at the front of a graph, move out of the branches, one of each name. Consumes both
    models.
    """
    outer = _Outer()
    branches = [outer.adopt(model.graph) for model in (prefill, decode)]
    role = ir.Value(name=ROLE_INPUT, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    prefill_number = outer.constant(ROLE_NUMBER["prefill"])
    is_prefill = ir.node("Equal", [role, prefill_number], name="is_prefill")
    is_prefill.outputs[0].name = "is_prefill"
    select = ir.node(
        "If",
        [is_prefill.outputs[0]],
        {BRANCH["prefill"]: branches[0], BRANCH["decode"]: branches[1]},
        num_outputs=len(decode.graph.outputs),
        name=SELECT_NODE,
    )
    for output, of_branch in zip(select.outputs, branches[1].outputs, strict=True):
        output.name, output.type, output.shape = of_branch.name, of_branch.type, of_branch.shape
    for branch, role_name in zip(branches, ROLE_NUMBER, strict=True):
        _rename_outputs(branch, role_name)
    graph = ir.Graph(
        [role, *outer.inputs.values()],
        list(select.outputs),
        nodes=[*outer.casts.values(), is_prefill, select],
        initializers=list(outer.initializers.values()),
        opset_imports=dict(prefill.graph.opset_imports),
        name="language",
    )
    return ir.Model(
        graph,
        ir_version=prefill.ir_version,
        producer_name=prefill.producer_name,
        functions=list(prefill.functions.values()),
    )


def cut(model: bytes, role: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The part of one role between named values, as a model of its own; how models too large to run whole are checked.

    model: the joined model's bytes. inputs, outputs: names of inputs of the model, or of values as the role's stored
      graph names them. Raises ValueError when `inputs` do not bound `outputs`.
    """
    whole = ir.from_proto(onnx.ModelProto.FromString(model))
    graph = _take_branch(whole.graph, role)
    names = {value.name for value in graph.inputs}
    bounds = [[name if name in names else f"{role}/{name}" for name in bound] for bound in (inputs, outputs)]
    part = convenience.extract(graph, *bounds)
    functions = list(whole.functions.values())
    return ir.to_proto(ir.Model(part, ir_version=whole.ir_version, functions=functions)).SerializeToString()


def _take_branch(graph: ir.Graph, role: str) -> ir.Graph:
    """Put the nodes of one branch in the place of the `If`."""
    select = graph.node(SELECT_NODE)
    branch = select.attributes[BRANCH[role]].as_graph()
    nodes, outputs = list(branch), list(branch.outputs)
    branch.outputs.clear()
    branch.remove(nodes)
    graph.outputs.clear()
    graph.remove(select)
    graph.extend(nodes)
    graph.outputs.extend(outputs)
    return graph


class _Outer:
    """What the branches share: inputs, initializers and casts of initializers, by name."""

    def __init__(self) -> None:
        self.inputs: dict[str, ir.Value] = {}
        self.initializers: dict[str, ir.Value] = {}
        self.casts: dict[str, ir.Node] = {}

    def adopt(self, graph: ir.Graph) -> ir.Graph:
        """Make `graph` a branch: it keeps its nodes, everything it took from outside now comes from the outer scope."""
        for value in list(graph.inputs):
            self._share(self.inputs, value)
        graph.inputs.clear()
        for name, value in list(graph.initializers.items()):
            graph.initializers.pop(name)
            self._share(self.initializers, value)
        for node in list(graph):
            if node.op_type == "Cast" and node.inputs[0] in self.initializers.values():
                self._share_cast(graph, node)
        return graph

    def constant(self, number: int) -> ir.Value:
        name = f"const.role.{number}"
        tensor = ir.tensor(number, dtype=ir.DataType.INT64, name=name)
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]), const_value=tensor)
        return self.initializers.setdefault(name, value)

    def _share(self, shared: dict[str, ir.Value], value: ir.Value) -> None:
        assert value.name is not None
        known = shared.setdefault(value.name, value)
        if known is not value:
            known.shape = _wider(known.shape, value.shape)
            convenience.replace_all_uses_with(value, known)

    def _share_cast(self, graph: ir.Graph, node: ir.Node) -> None:
        output = node.outputs[0]
        assert output.name is not None
        known = self.casts.setdefault(output.name, node)
        if known is not node:
            convenience.replace_all_uses_with(output, known.outputs[0])
        # "safe" also unhooks the node from its inputs: wanted for the one that goes, not for the one that moves.
        graph.remove(node, safe=known is not node)


def _wider(a: ir.Shape | None, b: ir.Shape | None) -> ir.Shape:
    """The shape that admits both: prefill has one row and many positions, decode many rows and one position."""
    assert a is not None
    assert b is not None
    return ir.Shape(
        [left if left == right or not isinstance(left, int) else right for left, right in zip(a, b, strict=True)]
    )


def _rename_outputs(branch: ir.Graph, role: str) -> None:
    """Value names are unique over a model, subgraphs included."""
    for output in branch.outputs:
        output.name = f"{role}/{output.name}"
    names = {output.name for output in branch.outputs}
    for node in branch:
        for value in node.outputs:
            if value.name not in names:
                value.name = f"{role}/{value.name}"
        node.name = f"{role}/{node.name}"
