"""Decode steps become one launch: by a graph of ours on full TensorRT, by RTX's own on RTX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.cuda import FakeRuntime
from fake_gpu.doubling import Doubling
from fake_gpu.tensorrt import FakeTensorRT, Package
from trol_runtime import cuda_device
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.decode_graph import DecodeGraph


class Steps:
    """A plan of one of the packages, its runs made by a DecodeGraph."""

    def __init__(self, cuda: FakeRuntime, package: Package) -> None:
        device = CudaDevice()
        self.cuda, self.graph = cuda, DecodeGraph(device)
        self.doubling = Doubling(FakeTensorRT(cuda, package), device)

    def doubled(self, value: float, rows: int = 1) -> float:
        """One step."""
        self.doubling.upload(value, rows)
        self.graph.run(self.doubling.plan, self.doubling.tensors(rows))
        return self.doubling.result(rows)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return fake


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def steps(request: pytest.FixtureRequest, cuda: FakeRuntime) -> Steps:
    return Steps(cuda, request.param)


def test_each_step_reads_what_lies_there_when_it_runs(steps: Steps) -> None:
    assert [steps.doubled(value) for value in (1, 2, 3, 4)] == [2, 4, 6, 8]


def test_steps_after_the_first_are_one_launch(steps: Steps) -> None:
    for value in range(4):
        steps.doubled(value)
    assert steps.cuda.launched_graphs == 3


def test_another_kind_of_step_is_run_as_it_is_and_then_captured_anew(steps: Steps) -> None:
    assert [steps.doubled(3, rows) for rows in (1, 1, 2, 2, 1, 2)] == [6] * 6


def test_what_cannot_be_captured_is_run_as_it_is(steps: Steps) -> None:
    steps.cuda.capturable = False
    assert [steps.doubled(value) for value in (1, 2, 3)] == [2, 4, 6]
    assert steps.cuda.launched_graphs == 0


def test_runs_of_rtx_are_never_captured_from_outside(cuda: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(self: CudaDevice, enqueue: Any) -> Any:
        pytest.fail("a capture")

    monkeypatch.setattr(CudaDevice, "captured", captured)
    steps = Steps(cuda, "tensorrt_rtx")
    for value in range(4):
        steps.doubled(value)
