"""Plans are built without a GPU, strongly typed, in both forms of the weights, and say what they compute in.

TensorRT for RTX builds here and cannot run: what is asserted is what a build knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from emitted_graphs import ReadArray, seeded_model, stored_graph
from trol_engines import plan_builder
from trol_engines.plan_builder import BuiltPlan, build_plan
from trol_engines.plan_graph import as_bytes, external_weights, input_values, plan_graph, weights_to_inputs
from trol_engines.plan_profile import axis_ranges, shape_ranges
from trol_engines.tensorrt_package import TensorRTPackage, import_tensorrt
from trol_export.graph_build import ROLES
from trol_graphs.graph_io import Role
from trol_runtime.errors import TrolError
from trol_runtime.manifest import Limits, Opset
from trol_runtime.model_config import ModelConfig

pytest.importorskip("tensorrt_rtx", reason="plans of the target tensorrt-rtx need the extra rtx")

from fake_gpu.rtx import ONLY_RTX

LIMITS = Limits(max_seq=64, max_batch=3)


@pytest.fixture(scope="module")
def package() -> TensorRTPackage:
    return import_tensorrt("tensorrt-rtx")


@pytest.fixture(scope="module", params=["micro-internlm2", "micro-phi3"])
def model(request: pytest.FixtureRequest) -> tuple[ModelConfig, ReadArray]:
    return seeded_model(request.param)


def plan_inputs(config: ModelConfig, role: Role, opset: Opset = "modern") -> ir.Model:
    return plan_graph(stored_graph(config, role, "fp16").SerializeToString(), LIMITS.max_seq, opset)


def ranges_of(graph: ir.Model, config: ModelConfig, role: Role) -> Mapping[str, Any]:
    return shape_ranges(input_values(graph), axis_ranges(role, config, LIMITS))


def bytes_of(read: ReadArray, names: list[str]) -> dict[str, NDArray[np.uint8]]:
    return {name: np.ascontiguousarray(read(name).astype(np.float16)).reshape(-1).view(np.uint8) for name in names}


def built(
    package: TensorRTPackage, model: tuple[ModelConfig, ReadArray], role: Role, shared: bool, opset: Opset = "modern"
) -> BuiltPlan:
    config, read = model
    graph = plan_inputs(config, role, opset)
    weights = None if shared else bytes_of(read, external_weights(graph))
    if shared:
        weights_to_inputs(graph)
    return build_plan(package, as_bytes(graph), ranges_of(graph, config, role), weights)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "embedded"])
def test_every_role_is_built_with_weights_as_inputs_and_inside(
    package: TensorRTPackage, model: tuple[ModelConfig, ReadArray], role: Role, shared: bool
) -> None:
    plan = built(package, model, role, shared)
    assert len(plan.plan) > 10_000
    assert plan.types["matrix products"]["HALF"] >= plan.types["attention"]["HALF"] > 0


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "embedded"])
def test_every_role_is_built_from_its_legacy_graph_too(package: TensorRTPackage, role: Role, shared: bool) -> None:
    """Of one model, which takes seconds; that TensorRT reads those of both, test_fake_gpu.py asserts."""
    plan = built(package, seeded_model("micro-internlm2"), role, shared, "legacy")
    assert len(plan.plan) > 10_000
    assert plan.types["matrix products"]["HALF"] > 0
    assert plan.types["attention"].keys() == {"FLOAT"}  # softmax is written out, in fp32
    assert "KV cache" not in plan.types


def test_matrix_products_are_fp16_and_only_the_gate_is_fp32(
    package: TensorRTPackage, model: tuple[ModelConfig, ReadArray]
) -> None:
    config = model[0]
    types = built(package, model, "prefill", shared=True).types
    assert types["matrix products"]["FLOAT"] == config.decoder.layers  # the gate's dot product, once per layer
    assert types["attention"] == {"HALF": 2 * config.decoder.layers}  # both passes
    assert types["KV cache"] == {"HALF": 2 * config.decoder.layers}  # keys and values of the first
    assert set(built(package, model, "decode", shared=True).types["matrix products"]) == {"HALF"}


@pytest.mark.parametrize("opset", ["modern", "legacy"])
def test_full_tensorrt_is_asked_for_nothing_that_only_rtx_has(
    package: TensorRTPackage, monkeypatch: pytest.MonkeyPatch, opset: Opset
) -> None:
    """Built by tensorrt_rtx without those names: only it is installed here."""
    for owner, names in ONLY_RTX.items():
        for name in names:
            monkeypatch.delattr(getattr(package.trt, owner) if owner else package.trt, name)
    full = TensorRTPackage("tensorrt", package.trt)
    assert built(full, seeded_model("micro-internlm2"), "decode", shared=True, opset=opset).plan
    with pytest.raises(AttributeError, match="REQUIRE_USER_ALLOCATION"):
        built(package, seeded_model("micro-internlm2"), "decode", shared=True, opset=opset)


def test_tf32_is_off_all_memory_is_lent_and_nothing_is_built_for_one_profile_more(package: TensorRTPackage) -> None:
    """Seen by a builder that notes what is asked of it, in front of the real one."""
    trt = package.trt
    seen: dict[str, Any] = {}

    def noting_builder(log: Any) -> Any:
        builder = trt.Builder(log)

        def build(network: Any, config: Any) -> Any:
            seen["lent memory"] = config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            seen["tf32"] = config.get_flag(trt.BuilderFlag.TF32)
            seen["profiles"] = config.num_optimization_profiles
            seen["strongly typed"] = network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            return builder.build_serialized_network(network, config)

        return Overlaid(builder, build_serialized_network=build)

    noting = TensorRTPackage(package.target, Overlaid(trt, Builder=noting_builder))  # type: ignore[arg-type]
    built(noting, seeded_model("micro-internlm2"), "decode", shared=True)
    assert seen == {"lent memory": True, "tf32": False, "profiles": 1, "strongly typed": True}


class Overlaid:
    """A module or an object with some names replaced."""

    def __init__(self, beneath: Any, **names: Any) -> None:
        self.__dict__.update(names)
        self._beneath = beneath

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beneath, name)


def test_a_graph_that_the_parser_refuses_is_one_line_with_its_reason(package: TensorRTPackage) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    graph = helper.make_model(helper.make_graph([node], "odd", [value], [output])).SerializeToString()
    with pytest.raises(TrolError) as refused:
        build_plan(package, graph, {})
    message = str(refused.value)
    assert message.startswith(f"tensorrt-rtx {package.version} cannot read a graph (")
    assert "NoSuchOperator" in message
    assert message.endswith("; please report this model")
    assert "\n" not in message


def test_a_weight_of_another_size_is_refused(package: TensorRTPackage, model: tuple[ModelConfig, ReadArray]) -> None:
    config, read = model
    graph = plan_inputs(config, "decode")
    weights = bytes_of(read, external_weights(graph))
    name = next(iter(weights))
    weights[name] = weights[name][:-2]
    with pytest.raises(TrolError, match="cannot read a graph"):
        build_plan(package, as_bytes(graph), ranges_of(graph, config, "decode"), weights)


def test_a_profile_that_does_not_fit_is_one_line_with_the_builders_reason(
    package: TensorRTPackage, model: tuple[ModelConfig, ReadArray]
) -> None:
    config, _ = model
    graph = plan_inputs(config, "decode")
    weights_to_inputs(graph)
    ranges = {name: shapes for name, shapes in ranges_of(graph, config, "decode").items() if name != "token_ids"}
    with pytest.raises(TrolError) as refused:
        build_plan(package, as_bytes(graph), ranges)
    assert str(refused.value).startswith(f"tensorrt-rtx {package.version} cannot build a plan (")


def test_what_moves_data_is_not_reported_as_computing() -> None:
    assert set(plan_builder._GROUPS.values()) == {
        "matrix products", "attention", "norms", "activations", "rotary embedding", "KV cache", "mixer",
    }  # fmt: skip
