"""The CPU target: the roles of the language model as branches of `If`s, over one set of weights.

ONNX Runtime packs or casts a weight once per session, so two sessions would hold two copies; one session whose branches
share outer-scope initializers holds one. The model selects its role by an integer input, so that a further role fits
in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir import convenience

from trol_runtime.cache_names import PAST, PAST_SECOND_PASS, PRESENT, PRESENT_SECOND_PASS
from trol_runtime.ort_backend import ROLE_INPUT, ROLE_NUMBER

# The order in which roles are asked for: decode runs most often, so it lies behind one `If` and not behind two.
ORDER = ("decode", "prefill", "extend")
_PAST_OF = {PRESENT: PAST, PRESENT_SECOND_PASS: PAST_SECOND_PASS}


def join_roles(roles: Mapping[str, ir.Model]) -> ir.Model:
    """One model with the inputs of all roles (those of the same name are one) and the outputs of all.

    `role` is an int64 scalar of `ROLE_NUMBER`; inputs of the roles not taken are ignored but must be fed. A role that
    has no use for a cache hands it on. Initializers, and the Casts of initializers at the front of a graph, move out of
    the branches, one of each name. Consumes the models.
    """
    models = {role: roles[role] for role in ORDER}
    outer = _Outer()
    branches = {role: outer.adopt(model.graph) for role, model in models.items()}
    outputs = _outputs_of_all(branches.values())
    for role, branch in branches.items():
        _hand_on(branch, outputs, outer.inputs)
        _rename_outputs(branch, role)
    number = ir.Value(name=ROLE_INPUT, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    nodes = _select(branches, number, outer, outputs)
    functions = {key: function for model in models.values() for key, function in model.functions.items()}
    graph = ir.Graph(
        [number, *outer.inputs.values()],
        list(nodes[-1].outputs),
        nodes=[*outer.casts.values(), *nodes],
        initializers=list(outer.initializers.values()),
        opset_imports=dict(models["prefill"].graph.opset_imports),
        name="language",
    )
    model = models["prefill"]
    return ir.Model(
        graph, ir_version=model.ir_version, producer_name=model.producer_name, functions=list(functions.values())
    )


def _select(
    branches: Mapping[str, ir.Graph], number: ir.Value, outer: _Outer, outputs: Sequence[ir.Value]
) -> list[ir.Node]:
    """The nodes that run the branch of role `number`: the first role's, or else one of the others'."""
    (role, branch), *others = branches.items()
    is_role = ir.node("Equal", [number, outer.constant(ROLE_NUMBER[role])], name=f"is_{role}")
    is_role.outputs[0].name = is_role.name
    if len(others) == 1:
        ((_, otherwise),) = others
    else:
        nodes = _select(dict(others), number, outer, outputs)
        otherwise = ir.Graph([], nodes[-1].outputs, nodes=nodes, name=f"not_{role}")
        for output in otherwise.outputs:
            output.name = f"not_{role}/{output.name}"
    select = ir.node(
        "If",
        [is_role.outputs[0]],
        {"then_branch": branch, "else_branch": otherwise},
        num_outputs=len(outputs),
        name=_select_name(role),
    )
    for output, like in zip(select.outputs, outputs, strict=True):
        output.name, output.type, output.shape = like.name, like.type, like.shape
    return [is_role, select]


def _select_name(role: str) -> str:
    return f"select_{role}"


def _outputs_of_all(branches: Iterable[ir.Graph]) -> list[ir.Value]:
    """What the joined model returns: every output of any branch once, as the first branch that has it describes it."""
    values = [value for branch in branches for value in branch.outputs]
    unique = {value.name: value for value in reversed(values)}
    return [
        ir.Value(name=name, type=unique[name].type, shape=unique[name].shape)
        for name in dict.fromkeys(value.name for value in values)
    ]


def _hand_on(branch: ir.Graph, outputs: Sequence[ir.Value], inputs: Mapping[str, ir.Value]) -> None:
    """Give `branch` all of `outputs` in order; a cache that it does not write goes from input to output as it is."""
    own = {value.name: value for value in branch.outputs}
    for like in outputs:
        assert like.name is not None
        if like.name not in own:
            kind, _, place = like.name.partition(".")
            node = ir.node("Identity", [inputs[f"{_PAST_OF[kind]}.{place}"]], name=f"{like.name}/Identity")
            node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = like.name, like.type, like.shape
            branch.append(node)
            own[like.name] = node.outputs[0]
    branch.outputs[:] = [own[like.name] for like in outputs]


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
    """Put the nodes of one branch in the place of the `If`s around it."""
    for asked in ORDER[:-1]:
        select = graph.node(_select_name(asked))
        branch = select.attributes["then_branch" if asked == role else "else_branch"].as_graph()
        nodes, outputs = list(branch), list(branch.outputs)
        branch.outputs.clear()
        branch.remove(nodes)
        graph.outputs.clear()
        graph.remove(select)
        graph.extend(nodes)
        graph.outputs.extend(outputs)
        if asked == role:
            break
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
