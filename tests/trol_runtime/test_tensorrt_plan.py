"""Plans of both packages are loaded and run as NVIDIA documents it, on the fake GPU; not run on a GPU yet."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.cuda import FakeRuntime
from fake_gpu.doubling import COLUMNS, MOST_ROWS, Doubling, doubling_plan
from fake_gpu.tensorrt import FakeContext, FakeEngine, FakeRtxEngine, FakeTensorRT, FakeTensorRTRuntime
from trol_runtime import cuda_device
from trol_runtime.cuda_device import CudaDevice, DeviceMemory
from trol_runtime.errors import EngineFileError, LimitError, TrolError
from trol_runtime.memory_need import readable
from trol_runtime.tensorrt_log import quiet_log
from trol_runtime.tensorrt_plan import TensorRTPlan, load_plans

Patch = pytest.MonkeyPatch
PLAN = doubling_plan()


@pytest.fixture
def cuda(monkeypatch: Patch, tmp_path: Path) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return fake


@pytest.fixture
def device(cuda: FakeRuntime) -> CudaDevice:
    return CudaDevice()


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def trt(request: pytest.FixtureRequest, cuda: FakeRuntime) -> Any:
    return FakeTensorRT(cuda, request.param)


@pytest.fixture
def rtx(cuda: FakeRuntime) -> Any:
    return FakeTensorRT(cuda, "tensorrt_rtx")


def loaded(trt: Any, device: CudaDevice, data: bytes = PLAN, last_error: str = "no reason given") -> TensorRTPlan:
    """last_error: what TensorRT has logged by then"""
    log = quiet_log(trt)
    log.last_error = last_error
    return TensorRTPlan(trt, trt.Runtime(log), data, "the plan of decode", device)


def test_a_plan_runs_in_every_shape_of_its_profile(trt: Any, device: CudaDevice) -> None:
    doubling = Doubling(trt, device)
    assert [doubling.run(value, rows) for value, rows in ((1, 1), (2, MOST_ROWS), (3, 2))] == [2, 4, 6]


def test_its_names_types_and_largest_shapes_are_told(trt: Any, device: CudaDevice) -> None:
    plan = loaded(trt, device)
    assert (plan.inputs, plan.outputs) == (["x"], ["y"])
    assert plan.dtypes == {"x": np.float32, "y": np.float32}
    assert plan.largest("x") == (MOST_ROWS, COLUMNS)


def test_a_shape_outside_its_profile_is_one_line(trt: Any, device: CudaDevice) -> None:
    doubling = Doubling(trt, device)
    with pytest.raises(TrolError) as refused:
        doubling.plan.bind(doubling.tensors(MOST_ROWS + 1))
    assert str(refused.value) == (
        "the plan of decode: x is (5, 8), the plan is built for (1, 8) to (4, 8); export the engine with other limits"
    )


def test_what_is_no_plan_of_this_version_is_refused_with_the_command_that_builds_one(
    trt: Any, device: CudaDevice
) -> None:
    with pytest.raises(EngineFileError) as refused:
        loaded(trt, device, b"a plan of another version")
    assert str(refused.value) == (
        f"the plan of decode: {trt.__name__} {trt.__version__} refuses this plan (no reason given); build it again "
        "with: trol-export --add-target"
    )


def test_a_plan_larger_than_the_free_memory_is_told_with_the_numbers(
    trt: Any, cuda: FakeRuntime, device: CudaDevice
) -> None:
    """TensorRT says of this no more than of a plan that it cannot read: it returns None."""
    cuda.memory.total = len(PLAN) - 1
    with pytest.raises(LimitError) as refused:
        loaded(trt, device)
    size = readable(len(PLAN))
    assert str(refused.value) == (
        f"the GPU has no memory for its {size} of the plan of decode (no reason given): it holds nothing of this "
        f"engine, {readable(len(PLAN) - 1)} of {readable(len(PLAN) - 1)} are free; close what else uses it, or build "
        "plans that share their weights with: trol-export --add-target ... --weights shared"
    )


def test_where_plans_share_their_weights_other_limits_help(trt: Any, cuda: FakeRuntime, device: CudaDevice) -> None:
    weights = device.allocate(3 << 20, "weights")
    cuda.memory.total = weights.nbytes + len(PLAN) - 1
    with pytest.raises(LimitError) as refused:
        loaded(trt, device)
    assert "it holds 3.00 MiB of weights, " in str(refused.value)
    assert str(refused.value).endswith("or export with a smaller --max-seq or --max-batch")


def test_where_tensorrt_names_memory_as_the_reason_it_is_told_though_the_plan_would_fit(
    trt: Any, device: CudaDevice, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(FakeTensorRTRuntime, "deserialize_cuda_engine", lambda self, data: None)
    with pytest.raises(
        LimitError, match=r"the GPU has no memory for its .* \(Error Code 2: OutOfMemory\): .* are free"
    ):
        loaded(trt, device, last_error="Error Code 2: OutOfMemory")


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        (
            "Error Code 1: Cuda Runtime (out of memory)",
            LimitError,
            "the GPU has no memory for a context of the plan of",
        ),
        (
            "Error Code 3: API Usage Error",
            TrolError,
            "gives no context (Error Code 3: API Usage Error); look at the GPU",
        ),
    ],
)
def test_a_context_that_cannot_be_made_is_one_line_with_the_reason(
    trt: Any, device: CudaDevice, monkeypatch: Patch, reason: str, kind: type[TrolError], message: str
) -> None:
    for engine in (FakeEngine, FakeRtxEngine):
        monkeypatch.setattr(engine, "create_execution_context", lambda self, how: None)
    with pytest.raises(kind) as refused:
        loaded(trt, device, last_error=reason)
    assert type(refused.value) is kind
    assert message in str(refused.value)


def test_a_run_that_does_not_start_is_one_line_with_the_reason(
    trt: Any, device: CudaDevice, monkeypatch: Patch
) -> None:
    plan = Doubling(trt, device).plan
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(TrolError) as refused:
        plan.enqueue()
    assert str(refused.value) == (
        "the plan of decode: TensorRT does not start a run (no reason given); look at the GPU with: "
        "trol-inspect --system"
    )


def test_a_context_of_rtx_goes_before_the_runtime_cache_and_the_configuration(rtx: Any, device: CudaDevice) -> None:
    plan = loaded(rtx, device)
    config = plan._rtx.config  # type: ignore[union-attr]
    # Attributes go in the order in which they came: here the context would be the last.
    plan.__dict__ = dict(sorted(plan.__dict__.items(), key=lambda item: item[0] == "_context"))
    gone = order_of_going({"cache": config.get_runtime_cache(), "configuration": config, "context": plan._context})
    del config, plan
    assert gone[0] == "context"
    assert set(gone[1:]) == {"cache", "configuration"}


def order_of_going(objects: Mapping[str, Any]) -> list[str]:
    """A list that these objects' names come to stand in as they go."""
    gone: list[str] = []
    for name, one in objects.items():
        weakref.finalize(one, gone.append, name)
    return gone


def test_what_a_context_of_rtx_needs_lives_as_long_as_the_plan(rtx: Any, device: CudaDevice) -> None:
    """The fake's context keeps neither alive, and does not run without them."""
    doubling = Doubling(rtx, device)
    gc.collect()
    assert doubling.run(1) == 2


def test_rtx_makes_graphs_of_decode_steps_and_of_nothing_else(rtx: Any, cuda: FakeRuntime, device: CudaDevice) -> None:
    launched = {}
    for role in ("prefill", "decode"):
        doubling, before = Doubling(rtx, device, role), cuda.launched_graphs
        for _ in range(3):
            doubling.run(1)
        launched[role] = cuda.launched_graphs - before
    assert launched == {"prefill": 0, "decode": 2}  # after the first, for which kernels are compiled


def test_rtx_compiles_no_kernels_for_single_lengths_of_prompts(
    rtx: Any, device: CudaDevice, monkeypatch: Patch
) -> None:
    """There are as many as tokens in a row: each would cost CPU time and its place in the cache on the disk."""
    compiled = {}
    for role in ("vision", "prefill", "extend", "decode"):
        doubling = Doubling(rtx, device, role)
        for rows in (1, 1, 2, 2):
            doubling.run(1, rows)
        compiled[role] = len(doubling.plan._rtx.config.get_runtime_cache()._kernels)  # type: ignore[union-attr]
    assert compiled == {"vision": 2, "prefill": 0, "extend": 0, "decode": 2}


def test_in_a_fork_nothing_of_a_plan_is_destroyed(trt: Any, device: CudaDevice, monkeypatch: Patch) -> None:
    plan = loaded(trt, device)
    context = weakref.ref(plan._context)
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: -1)
        del plan
        gc.collect()
    assert context() is not None


def test_a_plan_of_rtx_that_may_allocate_in_runs_is_run_without_graphs(
    rtx: Any, cuda: FakeRuntime, device: CudaDevice
) -> None:
    doubling = Doubling(rtx, device, data=doubling_plan(user_allocation=False))
    assert [doubling.run(value) for value in (1, 2, 3)] == [2, 4, 6]
    assert cuda.launched_graphs == 0


def test_only_rtx_makes_graphs_by_itself(cuda: FakeRuntime, device: CudaDevice) -> None:
    plans = {name: loaded(FakeTensorRT(cuda, name), device) for name in ("tensorrt", "tensorrt_rtx")}
    assert {name: plan.captures_itself for name, plan in plans.items()} == {"tensorrt": False, "tensorrt_rtx": True}


def test_activations_of_all_plans_lie_in_one_memory(trt: Any, device: CudaDevice, monkeypatch: Patch) -> None:
    lent: list[DeviceMemory] = []
    monkeypatch.setattr(TensorRTPlan, "lend_activations", lambda self, memory: lent.append(memory))
    load_plans(trt, {"prefill": PLAN, "decode": PLAN}, device, None)
    assert len(lent) == 2
    assert lent[0] is lent[1]
    assert lent[0].nbytes == FakeEngine.device_memory_size_v2
