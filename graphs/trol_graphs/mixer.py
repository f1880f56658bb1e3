"""`trol::Mixer` as an ONNX model-local function: what every runtime inlines unless it has a plugin of that name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

MIXER_DOMAIN = "trol"
_FLOAT = ir.DataType.FLOAT


def mixer_function(dtype: ir.DataType) -> ir.Function:
    """first, second (tokens, hidden), weight (1, hidden), bias (1) -> mixed (tokens, hidden), all of `dtype`.

    gate = 0.5 tanh(first weight^T + bias) + 0.5, mixed = first (1 - gate) + second gate: `trol_graphs.ops.mixer`.
    It computes in fp32 whatever its inputs are: the blend of two nearly equal passes is where fp16 would lose most.
    """
    inputs = [ir.Value(name=name) for name in ("first", "second", "weight", "bias")]
    nodes: list[ir.Node] = []

    def node(op: str, *operands: ir.Value, output: str, **attributes: object) -> ir.Value:
        made = ir.node(op, operands, attributes or None, name=output)  # type: ignore[arg-type]
        made.outputs[0].name = output
        nodes.append(made)
        return made.outputs[0]

    def constant(number: float, name: str) -> ir.Value:
        return node("Constant", output=name, value=ir.tensor(np.array(number, np.float32), name=name))

    operands = inputs
    if dtype != _FLOAT:
        operands = [node("Cast", value, output=f"{value.name}_fp32", to=_FLOAT) for value in inputs]
    first, second, weight, bias = operands
    half, one = constant(0.5, "half"), constant(1.0, "one")
    tanh = node("Tanh", node("Gemm", first, weight, bias, output="gate_logit", transB=1), output="tanh")
    gate = node("Add", node("Mul", tanh, half, output="half_tanh"), half, output="gate")
    kept = node("Mul", first, node("Sub", one, gate, output="one_minus_gate"), output="kept")
    mixed = node("Add", kept, node("Mul", second, gate, output="replaced"), output="mixed")
    if dtype != _FLOAT:
        mixed = node("Cast", mixed, output="mixed_narrow", to=dtype)
    graph = ir.Graph(inputs, [mixed], nodes=nodes, opset_imports={"": 24}, name="Mixer")
    return ir.Function(MIXER_DOMAIN, "Mixer", graph=graph, attributes=[])
