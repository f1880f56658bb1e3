"""Backends by name: what an engine file runs on, opened on this machine or refused in one line."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trol_runtime.errors import TrolError, UsageError
from trol_runtime.one_line import one_line

if TYPE_CHECKING:
    from trol_runtime.bundle import Bundle
    from trol_runtime.session import Backend

CPU, CUDA = "cpu", "cuda"
WITHOUT_PLANS = (CPU, CUDA)  # both run the graphs for the CPU
# The target of a plan is the name of the backend that runs it.
_TENSORRT_MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
BACKENDS = (*WITHOUT_PLANS, *_TENSORRT_MODULES)


def require_known_backend(name: str) -> None:
    """Raise UsageError for a name that is not one of BACKENDS."""
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}; this version runs engines on: {', '.join(BACKENDS)}")


def open_backend(name: str, bundle: Bundle, threads: int | None = None, trust_plans: bool = False) -> Backend:
    """Load an engine file for one of BACKENDS.

    threads: of one run on the CPU. trust_plans: run plans that were not built here, which is to run their code
    Raises UsageError for another name, MissingExtraError and other TrolErrors where this machine does not run it, and
    EngineFileError where the file has nothing for it.
    """
    require_known_backend(name)
    if name == CPU:
        from trol_runtime.cpu_backend import CpuBackend
        from trol_runtime.memory_need import require_memory

        require_memory(bundle.manifest)
        return CpuBackend(bundle, threads)
    if name == CUDA:
        return _cuda_backend(bundle)
    return _gpu_backend(name, bundle, trust_plans)


def _cuda_backend(bundle: Bundle) -> Backend:
    from trol_runtime.cuda_backend import CudaBackend
    from trol_runtime.machine import describe_machine
    from trol_runtime.memory_need import require_memory
    from trol_runtime.target_support import require_runnable

    require_runnable(CUDA, describe_machine())
    require_memory(bundle.manifest)  # weights are widened here before they go to the GPU
    return CudaBackend(bundle)


def _gpu_backend(target: str, bundle: Bundle, trust_plans: bool) -> Backend:
    from trol_runtime.cuda_device import CudaDevice
    from trol_runtime.device_arena import DeviceArena
    from trol_runtime.gpu_backend import GpuBackend
    from trol_runtime.machine import describe_machine
    from trol_runtime.plan_build import build_missing
    from trol_runtime.plan_choice import Device, gpu_model, this_platform
    from trol_runtime.plan_store import find_plan
    from trol_runtime.target_support import known_sm, require_runnable
    from trol_runtime.tensorrt_plan import load_plans

    machine = describe_machine()
    require_runnable(target, machine)
    trt = _tensorrt(target)
    here = Device(target, trt.__version__, known_sm(machine), this_platform(), gpu_model(target, machine))
    stored = find_plan(bundle, here, trust_plans=trust_plans)
    if stored is None:
        stored = build_missing(bundle, here)
    device = CudaDevice()
    arena = None if stored.plan.weights == "embedded" else DeviceArena(bundle, device)
    loaded = load_plans(trt, stored, device, arena)
    return GpuBackend(device, loaded, bundle.manifest.model, bundle.manifest.limits, stored.plan.opset)


def _tensorrt(target: str) -> Any:
    """The library of a target; raises TrolError where its package is there and what it loads is not."""
    module = _TENSORRT_MODULES[target]
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise TrolError(one_line(f"{module} is installed and cannot be loaded ({error}); install it again")) from None
