"""What was built is read from the engine inspector's JSON, as TensorRT 10 and as 11 write it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from trol_engines.built_types import OTHER, built_types, types_of


def layer(**output: str) -> dict[str, Any]:
    return {"Name": "a layer", "LayerType": "gemm", "Inputs": [], "Outputs": [{"Name": "y", **output}]}


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ({"Format/Datatype": "Half"}, "fp16"),
        ({"Format/Datatype": "Row major linear FP16 format"}, "fp16"),
        ({"Format/Datatype": "Float"}, "fp32"),
        ({"Format/Datatype": "Row major linear BFloat16 format"}, "bf16"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}, "int8"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, OTHER),
        ({"DataType": "Half", "Format": "Row major linear FP16 format (kLINEAR)"}, "fp16"),
        ({"DataType": "Float", "Format": "Row major linear FP32 format (kLINEAR)"}, "fp32"),
        ({}, OTHER),
    ],
)
def test_the_type_of_a_layer_is_that_of_its_output(output: dict[str, str], name: str) -> None:
    assert types_of({"Layers": [layer(**output)]}) == {name: 1}


def test_layers_are_counted_by_type() -> None:
    half, full = layer(**{"Format/Datatype": "Half"}), layer(**{"Format/Datatype": "Float"})
    assert types_of({"Layers": [half, full, half], "Bindings": ["x"]}) == {"fp16": 2, "fp32": 1}


def test_a_layer_without_outputs_is_counted_too() -> None:
    assert types_of({"Layers": [{"Name": "a wait", "Outputs": []}]}) == {OTHER: 1}


def test_layers_of_which_only_names_are_known_are_not_counted() -> None:
    assert types_of({"Layers": ["conv + relu"]}) == {}


class Context:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True


class Engine:
    """Of one dynamic input; what it is described as depends on nothing."""

    num_io_tensors = 2

    def __init__(self, described: str) -> None:
        self.context: Context | None = Context()
        self.inspector = SimpleNamespace(execution_context=None, get_engine_information=lambda form: described)

    def get_tensor_name(self, number: int) -> str:
        return "xy"[number]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "input", "y": "output"}[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1,), (64,), (4096,)]

    def create_execution_context(self, strategy: Any) -> Context | None:
        assert strategy == "user managed", "who gives memory to activations of the largest shapes?"
        return self.context

    def create_engine_inspector(self) -> SimpleNamespace:
        return self.inspector


def library(engine: Any) -> Any:
    """TensorRT whose runtime takes every plan for this engine."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    return SimpleNamespace(
        ILogger=type("ILogger", (), {"__init__": lambda self: None}),
        Runtime=lambda log: runtime,
        LayerInformationFormat=SimpleNamespace(JSON=1),
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )


def test_a_plan_is_inspected_in_the_shapes_it_is_tuned_for() -> None:
    engine = Engine(json.dumps({"Layers": [layer(**{"Format/Datatype": "Half"})]}))
    assert built_types(library(engine), b"plan") == {"fp16": 1}
    assert engine.context is not None
    assert engine.inspector.execution_context is engine.context
    assert engine.context.shapes == {"x": (64,)}


def test_of_a_plan_for_other_gpus_nothing_is_known() -> None:
    assert built_types(library(None), b"plan") == {}


def test_where_there_is_no_memory_for_a_context_nothing_is_known() -> None:
    engine = Engine(json.dumps({"Layers": [layer(**{"Format/Datatype": "Half"})]}))
    engine.context = None
    assert built_types(library(engine), b"plan") == {}


def test_an_inspector_that_fails_costs_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Engine) -> SimpleNamespace:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "create_engine_inspector", fail)
    assert built_types(library(Engine("{}")), b"plan") == {}


@pytest.mark.parametrize("described", ["", "no JSON", json.dumps({"Layers": [layer()]})])
def test_an_inspector_that_tells_no_types_costs_no_plan(described: str) -> None:
    assert built_types(library(Engine(described)), b"plan") == {}


def test_the_names_it_uses_are_those_of_the_installed_package() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the names of tensorrt_rtx stand for both packages'")
    assert trt.EngineInspector.execution_context is not None
    assert "strategy: tensorrt" in trt.ICudaEngine.create_execution_context.__doc__
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED is not None
    assert trt.IExecutionContext.set_input_shape is not None
    assert trt.LayerInformationFormat.JSON is not None
    assert trt.ICudaEngine.create_engine_inspector is not None
    assert trt.EngineInspector.get_engine_information is not None
