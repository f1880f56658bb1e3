"""`tensorrt` and `tensorrt_rtx` as far as the backend uses them; a plan is the ONNX graph it would be built from.

ONNX Runtime runs it: a run takes what lies at the addresses it was given when its turn on the stream comes, in the
shapes that were set when it was enqueued. Only `tensorrt_rtx` is installed here: its names and signatures stand for
both packages', without those that only RTX has (`fake_gpu.rtx`).
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import tensorrt_rtx as real

from fake_gpu.cuda import FakeRuntime
from fake_gpu.declared import declared_by
from fake_gpu.memory import Fault
from fake_gpu.rtx import ONLY_RTX, FakeRuntimeCache, FakeRuntimeConfig

__all__ = ["FakeContext", "FakeEngine", "FakeRtxContext", "FakeRtxEngine", "FakeRuntimeCache", "FakeTensorRT"]

Package = Literal["tensorrt", "tensorrt_rtx"]
Shape = tuple[int, ...]

_MAGIC = b"fake plan "
_ACTIVATION_BYTES = 4096
_ADDRESS_ALIGNMENT = 256
_IN_PLACE = {"present": "past_key_values", "present_second_pass": "past_second_pass"}

_TAKEN_AS_THEY_ARE = (
    *("TensorIOMode", "ExecutionContextAllocationStrategy", "DataType", "nptype", "ILogger", "__version__"),
    *("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"),
)


def fake_plan(graph: bytes, ranges: Mapping[str, Sequence[Shape]], user_allocation: bool = True) -> bytes:
    """A plan.

    graph: as `plan_graph` makes it. ranges: smallest, typical and largest shape of inputs, by name
    user_allocation: whether it was built with REQUIRE_USER_ALLOCATION
    """
    shapes = {name: [list(shape) for shape in shapes] for name, shapes in ranges.items()}
    header = json.dumps({"ranges": shapes, "user_allocation": user_allocation}).encode()
    return _MAGIC + len(header).to_bytes(8, "little") + header + graph


class FakeTensorRT:
    """The module. cuda: whose memory and stream plans use. package: which of the two it is"""

    def __init__(self, cuda: FakeRuntime, package: Package = "tensorrt_rtx") -> None:
        self._cuda, self.__name__ = cuda, package

    def __getattr__(self, name: str) -> Any:
        if name in _TAKEN_AS_THEY_ARE and not self._lacks(name):
            return getattr(real, name)
        if name.startswith("__") or self._lacks(name):
            raise AttributeError(f"{self.__name__} has no {name}")
        getattr(real, name)  # AttributeError for what the package does not have
        raise NotImplementedError(f"the fake does not know {self.__name__}.{name}")

    def Runtime(self, logger: Any) -> FakeTensorRTRuntime:
        engine = FakeEngine if self.__name__ == "tensorrt" else FakeRtxEngine
        return FakeTensorRTRuntime(self._cuda, logger, engine)

    def _lacks(self, name: str) -> bool:
        return self.__name__ == "tensorrt" and name in ONLY_RTX[""]


@declared_by(real.Runtime)
class FakeTensorRTRuntime:
    def __init__(self, cuda: FakeRuntime, logger: Any, engine: type[FakeEngine]) -> None:
        self._cuda, self.logger, self._engine = cuda, logger, engine

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        free = self._cuda.memory.total - self._cuda.memory.in_use
        if not serialized_engine.startswith(_MAGIC) or len(serialized_engine) > free:
            return None
        return self._engine(self._cuda, serialized_engine)


@declared_by(real.ICudaEngine)
class FakeEngine:
    """Of full TensorRT."""

    def __init__(self, cuda: FakeRuntime, plan: bytes) -> None:
        begin = len(_MAGIC) + 8
        end = begin + int.from_bytes(plan[len(_MAGIC) : begin], "little")
        header = json.loads(plan[begin:end])
        self.ranges: dict[str, list[Shape]] = {
            name: [tuple(shape) for shape in shapes] for name, shapes in header["ranges"].items()
        }
        self.user_allocation: bool = header["user_allocation"]
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(plan[end:], options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.cuda = cuda

    num_io_tensors = property(lambda self: len(self.inputs) + len(self.outputs))
    device_memory_size_v2 = _ACTIVATION_BYTES

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return real.TensorIOMode.INPUT if name in self.inputs else real.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        types = {"float": "FLOAT", "float16": "HALF", "int64": "INT64", "bool": "BOOL"}
        found = (self.inputs | self.outputs)[name].type.removeprefix("tensor(").removesuffix(")")
        return getattr(real.DataType, types[found])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        assert profile_index == 0
        if name not in self.ranges:
            static = tuple(self.inputs[name].shape)
            return [static, static, static]
        return self.ranges[name]

    def create_execution_context(self, strategy: Any) -> FakeContext:
        """The form that both packages have had since 10.0 (infer/Core/Engine.html of the Python API)."""
        _require_lent_memory(strategy)
        return FakeContext(self)

    def _updated_cache(self, output: str) -> str | None:
        """The input that an output is the further state of; new rows by themselves are shorter than any."""
        kind, _, place = output.partition(".")
        cache = self.inputs.get(f"{_IN_PLACE.get(kind)}.{place}")
        return cache.name if cache is not None and cache.shape == self.outputs[output].shape else None


@declared_by(real.ICudaEngine)
class FakeRtxEngine(FakeEngine):
    """Of TensorRT for RTX."""

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, runtime_config: FakeRuntimeConfig) -> FakeContext:
        _require_lent_memory(runtime_config.get_execution_context_allocation_strategy())
        return FakeRtxContext(self, runtime_config)


def _require_lent_memory(strategy: Any) -> None:
    assert strategy == real.ExecutionContextAllocationStrategy.USER_MANAGED, "who owns the activations?"


@declared_by(real.IExecutionContext)
class FakeContext:
    """Of full TensorRT."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, Shape] = {
            name: tuple(value.shape) for name, value in engine.inputs.items() if name not in engine.ranges
        }
        self._addresses: dict[str, int] = {}
        self._activations: tuple[int, int] | None = None
        self._changes = 0  # of shapes and addresses
        self._ran_with: int | None = None  # how many there had been at the last run outside a capture

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % _ADDRESS_ALIGNMENT == 0
        assert size >= self._engine.device_memory_size_v2
        self._activations = memory, size

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if name not in self._engine.inputs:
            return False
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
            self._changes += 1
        return fits

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.inputs and name not in self._engine.outputs:
            return False
        if memory % _ADDRESS_ALIGNMENT:
            raise Fault(f"{name} lies at {memory:#x}, no multiple of {_ADDRESS_ALIGNMENT}")
        self._addresses[name] = memory
        self._changes += 1
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.inputs if name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        unset = [name for name in (*engine.inputs, *engine.outputs) if name not in self._addresses]
        if unset or self.infer_shapes():
            raise Fault(f"a run without addresses of {unset[:3]} or shapes of {self.infer_shapes()[:3]}")
        if self._activations is None:
            raise Fault("a run without memory for activations")
        engine.cuda.memory.view(*self._activations)
        for output in engine.outputs:
            cache = engine._updated_cache(output)
            if cache is not None and self._addresses[output] != self._addresses[cache]:
                raise Fault(f"{output} is not at the address of the cache it writes (IKVCacheUpdateLayer)")
        captured = engine.cuda._capture is not None
        if captured:
            self._require_capturable()
        else:
            self._enqueued()
        changes, shapes, addresses = self._changes, dict(self._shapes), dict(self._addresses)

        def work() -> None:
            if captured and changes != self._changes:
                raise Fault("a graph of a context that was changed since")
            self._run(shapes, addresses)

        engine.cuda.put(work, stream_handle)
        return True

    def _enqueued(self) -> None:
        """A run that no capture takes."""
        self._ran_with = self._changes

    def _require_capturable(self) -> None:
        """TensorRT documentation, "CUDA Graphs": what changes of shapes need is done by the run after them."""
        if self._ran_with != self._changes:
            raise Fault("a capture before the context ran once with its shapes and addresses")

    def _run(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        engine = self._engine
        feeds = {name: self._array(name, shapes[name], addresses[name]) for name in engine.inputs}
        for name, values in feeds.items():
            if values.dtype == bool and values.view(np.uint8).max(initial=0) > 1:
                raise Fault(f"{name} holds what is no truth value")
        try:
            results = engine.session.run(None, feeds)
        except Exception as error:  # of classes of ONNX Runtime's own
            raise Fault(f"what lies on the device is nothing to compute with ({error})") from error
        for name, values in zip(engine.outputs, results, strict=True):
            self._array(name, values.shape, addresses[name])[...] = values

    def _array(self, name: str, shape: Shape, address: int) -> Any:
        dtype = np.dtype(real.nptype(self._engine.get_tensor_dtype(name)))
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return self._engine.cuda.memory.view(address, nbytes).view(dtype).reshape(shape)


@declared_by(real.IExecutionContext)
class FakeRtxContext(FakeContext):
    """Of TensorRT for RTX, which compiles kernels for single shapes while others run, and makes graphs if it is asked.

    https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
    """

    def __init__(self, engine: FakeEngine, config: FakeRuntimeConfig) -> None:
        super().__init__(engine)
        cache = config.get_runtime_cache()
        assert cache is not None, "without a runtime cache every start compiles"
        self._config, self._cache = weakref.ref(config), weakref.ref(cache)
        self._met: set[str] = set()  # shapes

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.user_allocation and self._engine.cuda.capturable

    def _enqueued(self) -> None:
        super()._enqueued()
        config, cache = self._made_with()
        shapes = repr(sorted(self._shapes.items()))
        if shapes not in self._met:  # a fallback kernel runs, and in the background a better one is compiled
            self._met.add(shapes)
            return
        strategies = real.DynamicShapesKernelSpecializationStrategy
        if config.dynamic_shapes_kernel_specialization_strategy != strategies.NONE:
            cache._kernels.add(shapes)
        if config.cuda_graph_strategy == real.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE and self.is_stream_capturable(0):
            self._engine.cuda.launched_graphs += 1

    def _require_capturable(self) -> None:
        super()._require_capturable()
        if not self._engine.user_allocation:
            raise Fault("a capture of a plan built without REQUIRE_USER_ALLOCATION (TensorRT-RTX 1.2 release notes)")
        config, _ = self._made_with()
        lazy = real.DynamicShapesKernelSpecializationStrategy.LAZY
        if self._engine.ranges and config.dynamic_shapes_kernel_specialization_strategy == lazy:
            raise Fault(
                "a capture that keeps fallback kernels for good (https://github.com/pytorch/TensorRT/pull/4187)"
            )

    def _made_with(self) -> tuple[FakeRuntimeConfig, FakeRuntimeCache]:
        config, cache = self._config(), self._cache()
        if config is None or cache is None:
            raise Fault("a run of a context whose configuration or runtime cache is gone")
        return config, cache
