"""An engine file on the fake GPU: the plans that its graphs would become, its weights on the device, its backends."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import pytest

from fake_gpu.cuda import FakeRuntime
from fake_gpu.memory import POISON
from fake_gpu.onnxruntime import FakeOnnxRuntime
from fake_gpu.tensorrt import FakeTensorRT, Package, fake_plan
from trol_engines.plan_graph import as_bytes, cache_length, input_values, plan_graph, weights_to_inputs
from trol_engines.plan_profile import axis_ranges, shape_ranges
from trol_runtime import cuda_backend, cuda_device
from trol_runtime.bundle import Bundle
from trol_runtime.cuda_backend import CudaBackend
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.device_arena import DeviceArena
from trol_runtime.engine import TroL
from trol_runtime.gpu_backend import GpuBackend
from trol_runtime.manifest import Opset
from trol_runtime.tensorrt_plan import load_plans


class PlanKind(NamedTuple):
    """Which package plans are for, and the form of their graphs."""

    package: Package
    opset: Opset


RTX, TENSORRT = PlanKind("tensorrt_rtx", "modern"), PlanKind("tensorrt", "modern")
LEGACY = PlanKind("tensorrt", "legacy")  # as on JetPack 6


class FakeGpu(NamedTuple):
    """The device under a model, to look at and to break."""

    cuda: FakeRuntime
    device: CudaDevice
    backend: GpuBackend | CudaBackend


def plans_of(bundle: Bundle, opset: Opset = "modern") -> dict[str, bytes]:
    """A fake plan for every role, of the graph that a build would read."""
    manifest = bundle.manifest
    plans = {}
    for role, entry in manifest.graphs.items():
        graph = plan_graph(bundle.read(entry.entry), cache_length(manifest), opset)
        weights_to_inputs(graph)
        axes = axis_ranges(role, manifest.model, manifest.limits)
        plans[role] = fake_plan(as_bytes(graph), shape_ranges(input_values(graph), axes))
    return plans


def put_on_fake_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: PlanKind = RTX, plans: dict[str, bytes] | None = None
) -> FakeGpu:
    """Load an engine file as the backend would, with plans of a kind."""
    cuda = FakeRuntime()
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(CudaDevice, "take_back", _poisoning)
    device = CudaDevice()
    trt: Any = FakeTensorRT(cuda, kind.package)
    loaded = load_plans(trt, plans or plans_of(bundle, kind.opset), device, DeviceArena(bundle, device))
    return FakeGpu(cuda, device, GpuBackend(device, loaded, bundle.manifest.model, bundle.manifest.limits, kind.opset))


def put_on_fake_cuda(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, total_bytes: int = 1 << 40, **provider: Any
) -> FakeGpu:
    """Load an engine file as the backend `cuda` would. provider: options of FakeOnnxRuntime."""
    cuda = FakeRuntime(total_bytes)
    monkeypatch.setattr(CudaDevice, "take_back", _poisoning)
    with monkeypatch.context() as loading:  # and no longer: the CPU's backend takes onnxruntime as it is
        loading.setattr(cuda_device, "cuda_runtime", lambda: cuda)
        loading.setattr(cuda_backend, "CDLL", lambda library: None)
        loading.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime(cuda, **provider))
        backend = CudaBackend(bundle)
    return FakeGpu(cuda, backend._device, backend)


_take_back = CudaDevice.take_back


def _poisoning(device: CudaDevice, address: int, nbytes: int, what: str) -> None:
    """Memory that the device keeps for reuse holds no numbers any more."""
    device._call("cudaMemsetAsync", address, POISON, nbytes, device.stream)
    _take_back(device, address, nbytes, what)


def gpu_model(bundle: Bundle, gpu: FakeGpu) -> TroL:
    """The engine as a user has it, on that device."""
    model = TroL(bundle)
    model._backend = gpu.backend
    model.session = model.new_session()
    return model
