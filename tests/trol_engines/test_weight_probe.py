"""The probe times one linear with its weights as an input and inside the plan; here on the fake GPU."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.cuda import FakeRuntime
from fake_gpu.tensorrt import FakeTensorRT, fake_plan
from trol_engines import weight_probe
from trol_engines.plan_builder import BuiltPlan, build_plan
from trol_engines.tensorrt_package import TensorRTPackage, import_tensorrt
from trol_engines.weight_probe import linear_graph, probe
from trol_runtime import cuda_device
from trol_runtime.builder_process import run_builder
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.errors import TrolError
from trol_runtime.tensorrt_plan import TensorRTPlan
from trol_runtime.weight_form import WeightForm

OUT, IN = 96, 64
WEIGHT_BYTES = OUT * IN * 2
FORMS: tuple[WeightForm, ...] = ("shared", "embedded")


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_are_the_linear_of_the_graphs(form: WeightForm) -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float16) for shape in ((1, IN), (OUT, IN)))
    model = onnx.ModelProto.FromString(linear_graph(form, OUT, IN))
    feeds = {"x": x, "weight": weight}
    if form == "embedded":
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))
        del feeds["weight"]
    (y,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_allclose(y, expected, rtol=2e-3, atol=2e-2)  # one rounding to fp16 of sums around 8


def test_rtx_builds_both_and_one_of_them_holds_the_weights() -> None:
    package = import_tensorrt("tensorrt-rtx")
    shared, embedded = (len(build_plan(package, linear_graph(form, 1024, 1024), {}).plan) for form in FORMS)
    assert embedded > shared + 0.9 * 1024 * 1024 * 2


def test_rtx_builds_for_turing_when_asked() -> None:
    package = import_tensorrt("tensorrt-rtx")
    default, turing = (
        build_plan(package, linear_graph("shared", OUT, IN), {}, only_sm=sm).plan for sm in (None, "7.5")
    )
    assert default != turing


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> TensorRTPackage:
    """TensorRT on the fake GPU, where a plan is the graph it would be built from."""
    cuda = FakeRuntime()
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(weight_probe, "build_plan", lambda _, graph, ranges: BuiltPlan(fake_plan(graph, ranges), {}, 1))
    trt: Any = FakeTensorRT(cuda)
    return TensorRTPackage("tensorrt-rtx", trt)


def test_they_run_in_turns_and_the_median_of_each_is_what_was_found(
    package: TensorRTPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    clock = [0.0]

    def enqueue(self: TensorRTPlan) -> None:
        ran.append(self.name)
        clock[0] += 30e-6 if "shared" in self.name else 20e-6
        if len(ran) < 40:  # the first round compiles
            clock[0] += 1.0
        original(self)

    original = TensorRTPlan.enqueue
    monkeypatch.setattr(TensorRTPlan, "enqueue", enqueue)
    monkeypatch.setattr(weight_probe.time, "perf_counter", lambda: clock[0])
    found = probe(package, CudaDevice(), OUT, IN)
    assert found.shared_us == pytest.approx(30)
    assert found.embedded_us == pytest.approx(20)
    turns = [(name, len(list(runs))) for name, runs in groupby(ran)]
    assert turns == [(f"the probe's plan with {form} weights", 20) for form in FORMS] * 21


def test_where_it_cannot_run_one_line_says_so() -> None:
    with pytest.raises(TrolError, match="tensorrt-rtx needs an NVIDIA GPU, none to be seen here"):
        run_builder("trol_engines.weight_probe", "tensorrt-rtx")
