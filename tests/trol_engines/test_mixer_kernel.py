"""The mixer's kernel, interpreted, against the formula in float64 and against the function that it stands for."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from interpreted_mixer import Interpreter, Values, interpreter
from trol_graphs.mixer import MIXER_DOMAIN, mixer_function

pytest.importorskip("triton", reason="the mixer's kernel needs the extra plugin")

NUMPY_TYPE = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
DATA_TYPE = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
TYPES = list(NUMPY_TYPE)
# Half a unit in the last place; a whole one of bfloat16, to which the interpreter cuts off (what is compiled rounds to
# nearest: test_mixer_code).
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-7}
SMALLEST = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}  # below it results are rounded to zero
FP32 = ROUNDING["float32"]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Interpreter]:
    with interpreter() as run:
        yield run


def values_of(dtype: str, tokens: int, hidden: int, spread: float = 0.2) -> dict[str, np.ndarray]:
    """float32 values that are exact in `dtype`. spread: that of the gate's argument; 0.2 as in the seeded models."""
    random = np.random.default_rng([tokens, hidden])
    shapes = {"first": (tokens, hidden), "second": (tokens, hidden), "weight": (1, hidden), "bias": (1,)}
    drawn = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    drawn["weight"] *= spread / np.sqrt(hidden)
    return {name: value.astype(NUMPY_TYPE[dtype]).astype(np.float32) for name, value in drawn.items()}


def mixed_float64(values: Values) -> np.ndarray:
    first, second, weight, bias = (values[name].astype(np.float64) for name in ("first", "second", "weight", "bias"))
    gate = 0.5 * np.tanh(first @ weight.T + bias) + 0.5
    return first * (1 - gate) + second * gate


def error_bound(values: Values, dtype: str) -> np.ndarray:
    """How far fp32 arithmetic may be from `mixed_float64`, element by element.

    The sum over a row is a tree: each product is rounded once and takes part in log2(hidden) additions. tanh is at most
    as steep as 1, the gate half of that, and a gate that is off by d moves the result by d |second - first|. Six more
    roundings make tanh, gate and blend, each of a number below |first| + |second|; then the result becomes `dtype`.
    """
    first, second, weight, bias = (values[name].astype(np.float64) for name in ("first", "second", "weight", "bias"))
    summed = np.abs(first) @ np.abs(weight).T + np.abs(bias)
    logit = FP32 * (np.log2(first.shape[1]) + 2) * summed
    blend = 0.5 * logit * np.abs(second - first) + 6 * FP32 * (np.abs(first) + np.abs(second))
    return blend + (ROUNDING[dtype] * np.abs(mixed_float64(values)) + SMALLEST[dtype] if dtype != "float32" else 0)


def function_session(dtype: str) -> ort.InferenceSession:
    """A model that is one call of the model-local function; float32 at its borders, as numpy has no bfloat16."""
    shapes: dict[str, list[int | str]]
    shapes = {"first": ["tokens", "hidden"], "second": ["tokens", "hidden"], "weight": [1, "hidden"], "bias": [1]}
    fp32 = ir.TensorType(ir.DataType.FLOAT)
    inputs = [ir.Value(name=name, type=fp32, shape=ir.Shape(shape)) for name, shape in shapes.items()]
    narrow = [ir.node("Cast", [value], {"to": DATA_TYPE[dtype]}) for value in inputs]
    call = ir.node("Mixer", [node.outputs[0] for node in narrow], domain=MIXER_DOMAIN)
    widen = ir.node("Cast", call.outputs, {"to": ir.DataType.FLOAT})
    widen.outputs[0].name, widen.outputs[0].type = "mixed", fp32
    nodes = [*narrow, call, widen]
    graph = ir.Graph(inputs, widen.outputs, nodes=nodes, opset_imports={"": 24, MIXER_DOMAIN: 1}, name="call")
    model = ir.to_proto(ir.Model(graph, ir_version=12, functions=[mixer_function(DATA_TYPE[dtype])]))
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def function(values: Values, dtype: str) -> np.ndarray:
    (mixed,) = function_session(dtype).run(None, dict(values))
    return mixed


# Tokens and widths: one of each, widths that are no power of two, the three released ones, a whole prompt.
SIZES = [(1, 1), (2, 48), (29, 65), (300, 100), (3, 2048), (2, 3072), (2, 4096)]
WHOLE_PROMPT = pytest.param(4096, 48, marks=pytest.mark.slow)


@pytest.mark.parametrize(("tokens", "hidden"), [*SIZES, WHOLE_PROMPT])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_kernel_computes_the_formula(interpreted: Interpreter, dtype: str, tokens: int, hidden: int) -> None:
    values = values_of(dtype, tokens, hidden)
    off = np.abs(interpreted(values, dtype) - mixed_float64(values))
    assert np.all(off <= error_bound(values, dtype)), f"{off.max():.2e}"


@pytest.mark.parametrize(("tokens", "hidden"), SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_kernel_equals_the_function_that_it_stands_for(
    interpreted: Interpreter, dtype: str, tokens: int, hidden: int
) -> None:
    values = values_of(dtype, tokens, hidden)
    off = np.abs(interpreted(values, dtype).astype(np.float64) - function(values, dtype))
    # Both compute in fp32 and differ in the order of the sum and in how they make tanh.
    assert np.all(off <= 2 * error_bound(values, dtype)), f"{off.max():.2e}"


@pytest.mark.parametrize(("bias", "kept"), [(-50, "first"), (50, "second")])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_gate_that_is_shut_or_open_hands_one_pass_on_as_it_is(
    interpreted: Interpreter, dtype: str, bias: float, kept: str
) -> None:
    values = {**values_of(dtype, 5, 65), "bias": np.array([bias], np.float32)}
    np.testing.assert_array_equal(interpreted(values, dtype), values[kept])


@pytest.mark.parametrize("spread", [5, 30, 1e4])
def test_gates_between_shut_and_open_keep_the_bound(interpreted: Interpreter, spread: float) -> None:
    values = values_of("float32", 64, 65, spread)
    off = np.abs(interpreted(values, "float32") - mixed_float64(values))
    assert np.all(off <= error_bound(values, "float32")), f"{off.max():.2e}"


ODD = [
    pytest.param("first", (1, 3), np.nan, 0, id="NaN in the first pass reaches its whole token, through the gate"),
    pytest.param("first", (1, 3), np.inf, 0, id="infinity in the first pass opens or shuts the gate"),
    pytest.param("first", (1, 3), -np.inf, 0, id="so does minus infinity"),
    pytest.param("second", (1, 3), np.nan, 0, id="NaN in the second pass stays in its element"),
    pytest.param("second", (1, 3), np.inf, 0, id="infinity in the second pass stays in its element"),
    pytest.param("second", (1, 3), np.inf, -50, id="infinity behind a shut gate is NaN"),
    pytest.param("second", (1, 3), np.inf, -12, id="also where the gate is shut by fp32's rounding"),
    pytest.param("second", (1, 3), np.inf, 50, id="infinity behind an open gate is infinity"),
    pytest.param("weight", (0, 3), np.inf, 0, id="an infinite weight shuts or opens every gate"),
    pytest.param("weight", (0, 3), np.nan, 0, id="a weight that is NaN spoils every token"),
    pytest.param("bias", (0,), np.nan, 0, id="so does a bias"),
]


@pytest.mark.parametrize(("name", "place", "odd", "bias"), ODD)
@pytest.mark.parametrize("dtype", TYPES)
def test_infinities_and_nan_go_where_the_function_lets_them(
    interpreted: Interpreter, dtype: str, name: str, place: tuple[int, ...], odd: float, bias: float
) -> None:
    values = {**values_of(dtype, 3, 48), "bias": np.array([bias], np.float32)}
    values[name][place] = odd
    found, expected = interpreted(values, dtype), function(values, dtype)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(found[np.isinf(expected)], expected[np.isinf(expected)])
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))


def test_the_largest_numbers_do_not_overflow_on_the_way(interpreted: Interpreter) -> None:
    values = values_of("float16", 2, 48)
    for name in ("first", "second"):
        values[name][:] = 65504  # fp16's largest
    np.testing.assert_array_equal(interpreted(values, "float16"), values["first"])
