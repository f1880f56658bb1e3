"""The plans of a set are counted against what their graphs asked for."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import EngineOf
from trol_engines import plan_set
from trol_engines.plan_builder import BuiltPlan
from trol_engines.plan_set import MixerForm, PlanForm, build_plans
from trol_engines.tensorrt_package import TensorRTPackage
from trol_runtime.bundle import Bundle

LAYERS = 2  # of the micro model: a mixer each, in roles that read a prompt


@pytest.mark.parametrize(
    ("mixer", "became", "inlined"),
    [
        ("plugin", {"HALF": LAYERS}, 0),
        ("plugin", {"HALF": 1, "FLOAT": LAYERS - 1}, 0),
        ("plugin", {"HALF": 1}, LAYERS - 1),
        ("plugin", None, LAYERS),
        ("function", None, 0),
    ],
)
def test_mixers_that_were_marked_for_the_plugin_and_became_no_layer_of_it_are_counted(
    micro_engine: EngineOf, monkeypatch: pytest.MonkeyPatch, mixer: MixerForm, became: Any, inlined: int
) -> None:
    def build(package: object, graph: bytes, *_: object) -> BuiltPlan:
        calls_plugin = b"plugin_namespace" in graph
        return BuiltPlan(b"a plan", {"mixer": became} if became and calls_plugin else {}, 1)

    monkeypatch.setattr(plan_set, "build_plan", build)
    package: Any = TensorRTPackage("tensorrt", None)  # type: ignore[arg-type]
    plans = build_plans(package, Bundle.open(micro_engine("internlm2")), PlanForm("shared", mixer, "modern"))
    assert {plan.role: plan.inlined_mixers for plan in plans} == {
        **{"prefill": inlined, "extend": inlined, "decode": 0, "vision": 0}
    }
