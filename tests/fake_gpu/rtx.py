"""What `tensorrt_rtx` has and `tensorrt` has not, as far as the backend and the builder use it."""

from __future__ import annotations

from typing import Any

import tensorrt_rtx as real

from fake_gpu.declared import declared_by

# From the Python API pages of both, https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/python-api and
# https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api: infer/Core/RuntimeConfig.html,
# ExecutionContext.html, Runtime.html and BuilderConfig.html.
ONLY_RTX: dict[str, tuple[str, ...]] = {
    "": (
        *("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "IRuntimeCache", "ComputeCapability"),
        *("EngineValidity", "EngineInvalidityDiagnostics"),
    ),
    "BuilderFlag": ("REQUIRE_USER_ALLOCATION",),
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability", "get_compute_capability"),
    "IExecutionContext": ("is_stream_capturable",),
    "IRuntimeConfig": (
        *("create_runtime_cache", "get_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"),
        "dynamic_shapes_kernel_specialization_strategy",
    ),
    "Runtime": ("engine_header_size", "get_engine_validity"),
    # Full TensorRT has it since 10.14, and none of its own strategies; 10.3, the oldest that is supported, has not.
    "ICudaEngine": ("create_runtime_config",),
}


@declared_by(real.IRuntimeCache)
class FakeRuntimeCache:
    """taken: how many caches of an earlier start were taken in this process"""

    taken = 0

    def __init__(self) -> None:
        self._kernels: set[str] = set()  # for single shapes, compiled while the plan ran

    def deserialize(self, blob: bytes) -> bool:
        compiled, *kernels = blob.decode().split("\n")
        if compiled != "compiled":
            return False
        FakeRuntimeCache.taken += 1
        self._kernels.update(kernels)
        return True

    def serialize(self) -> bytes | None:
        return "\n".join(["compiled", *sorted(self._kernels)]).encode()


@declared_by(real.IRuntimeConfig)
class FakeRuntimeConfig:
    """What a context of RTX is made with."""

    def __init__(self) -> None:
        self.cuda_graph_strategy = real.CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = real.DynamicShapesKernelSpecializationStrategy.LAZY
        self._allocation = real.ExecutionContextAllocationStrategy.STATIC
        self._cache: FakeRuntimeCache | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            getattr(real.IRuntimeConfig, name)  # AttributeError for a setting that the package does not have
        object.__setattr__(self, name, value)

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._allocation

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._allocation = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def get_runtime_cache(self) -> FakeRuntimeCache | None:
        return self._cache

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self._cache = cache
        return True
