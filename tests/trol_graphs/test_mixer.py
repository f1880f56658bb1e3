"""`trol::Mixer`, the ONNX function, against the formula in float64 and against the eager operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from trol_graphs.mixer import MIXER_DOMAIN, mixer_function
from trol_graphs.ops import mixer

HIDDEN = 48
DATA_TYPE = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


def mixer_session(dtype: str) -> ort.InferenceSession:
    """A model that is one call of the function."""
    kind = DATA_TYPE[dtype]
    shapes: dict[str, list[int | str]]
    shapes = {"first": ["tokens", HIDDEN], "second": ["tokens", HIDDEN], "weight": [1, HIDDEN], "bias": [1]}
    inputs = [ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape)) for name, shape in shapes.items()]
    call = ir.node("Mixer", inputs, domain=MIXER_DOMAIN)
    call.outputs[0].name, call.outputs[0].type = "mixed", ir.TensorType(kind)
    graph = ir.Graph(inputs, call.outputs, nodes=[call], opset_imports={"": 24, MIXER_DOMAIN: 1}, name="call")
    model = ir.to_proto(ir.Model(graph, ir_version=12, functions=[mixer_function(kind)]))
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def operands(dtype: str, spread: float) -> dict[str, np.ndarray]:
    """`spread` is that of the gate's argument: 0.2 as in the seeded models, 30 for a gate that is shut or wide open."""
    random = np.random.default_rng(7)
    shapes = {"first": (29, HIDDEN), "second": (29, HIDDEN), "weight": (1, HIDDEN), "bias": (1,)}
    values = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    values["weight"] *= spread / np.sqrt(HIDDEN)
    return {name: value.astype(dtype) for name, value in values.items()}


def mixed_float64(first: np.ndarray, second: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    first, second, weight, bias = (value.astype(np.float64) for value in (first, second, weight, bias))
    share_of_second = 1 / (1 + np.exp(-2 * (first @ weight.T + bias)))  # = 0.5 tanh + 0.5
    return first * (1 - share_of_second) + second * share_of_second


@pytest.mark.parametrize("spread", [0.2, 30])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_function_computes_the_formula(dtype: str, spread: float) -> None:
    values = operands(dtype, spread)
    (found,) = mixer_session(dtype).run(None, values)
    assert found.dtype == dtype
    # fp32: some roundings of values up to 4. fp16: it computes in fp32, so the only rounding is that of the result.
    relative = {"float32": 0, "float16": 2**-11}[dtype]
    np.testing.assert_allclose(found.astype(np.float64), mixed_float64(**values), rtol=relative, atol=1e-5)


@pytest.mark.parametrize("spread", [0.2, 30])
def test_the_eager_operator_computes_the_formula(spread: float) -> None:
    values = operands("float32", spread)
    found = mixer(*(torch.from_numpy(value) for value in values.values()))
    np.testing.assert_allclose(found.numpy().astype(np.float64), mixed_float64(**values), rtol=0, atol=1e-5)


def test_the_gate_is_the_share_of_the_second_pass() -> None:
    values = operands("float32", 0.2)
    session = mixer_session("float32")
    for bias, kept in ((-50.0, "first"), (50.0, "second")):
        (found,) = session.run(None, {**values, "bias": np.array([bias], np.float32)})
        np.testing.assert_array_equal(found, values[kept])
