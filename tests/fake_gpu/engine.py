"""An engine file on the fake GPU: the plans that its graphs would become, its weights on the device, its backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from fake_gpu.cuda import FakeRuntime
from fake_gpu.memory import POISON
from fake_gpu.tensorrt import FakeTensorRT, fake_plan
from trol_engines.plan_graph import as_bytes, fix_cache_length, read_graph, weights_to_inputs
from trol_engines.plan_profile import axis_ranges, shape_ranges
from trol_runtime import cuda_device
from trol_runtime.bundle import Bundle
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.device_arena import DeviceArena
from trol_runtime.engine import TroL
from trol_runtime.gpu_backend import GpuBackend
from trol_runtime.tensorrt_plan import load_plans


class FakeGpu(NamedTuple):
    """The device under a model, to look at and to break."""

    cuda: FakeRuntime
    device: CudaDevice
    backend: GpuBackend


def plans_of(bundle: Bundle) -> dict[str, bytes]:
    """A fake plan for every role, of the graph that a build would read."""
    manifest = bundle.manifest
    plans = {}
    for role, entry in manifest.graphs.items():
        graph = read_graph(bundle.read(entry.entry))
        fix_cache_length(graph, manifest.limits.max_seq)
        weights_to_inputs(graph)
        axes = axis_ranges(role, manifest.model, manifest.limits)
        plans[role] = fake_plan(as_bytes(graph), shape_ranges(entry.inputs, axes, manifest.limits.max_seq))
    return plans


def put_on_fake_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, total_bytes: int = 1 << 40, plans: dict[str, bytes] | None = None
) -> FakeGpu:
    """Load an engine file as the backend would, onto a device with so much memory."""
    cuda = FakeRuntime(total_bytes)
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(CudaDevice, "take_back", _poisoning)
    device = CudaDevice()
    trt: Any = FakeTensorRT(cuda)
    loaded = load_plans(trt, plans or plans_of(bundle), device, DeviceArena(bundle, device))
    return FakeGpu(cuda, device, GpuBackend(device, loaded, bundle.manifest.model, bundle.manifest.limits))


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
