"""`tensorrt_rtx` as far as the backend uses it; a plan is the ONNX graph it would be built from, run by ONNX Runtime.

A run takes what lies at the addresses it was given when its turn on the stream comes, in the shapes that were set
when it was enqueued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import tensorrt_rtx as real

from fake_gpu.cuda import FakeRuntime
from fake_gpu.memory import Fault

_MAGIC = b"fake plan "
_ACTIVATION_BYTES = 4096
_ADDRESS_ALIGNMENT = 256
_IN_PLACE = {"present": "past_key_values", "present_second_pass": "past_second_pass"}

_TAKEN_AS_THEY_ARE = (
    *("TensorIOMode", "ExecutionContextAllocationStrategy", "DataType", "nptype", "ILogger", "__version__"),
)

Shape = tuple[int, ...]


def fake_plan(graph: bytes, ranges: Mapping[str, Sequence[Shape]]) -> bytes:
    """A plan. graph: as `plan_graph` makes it. ranges: smallest, typical and largest shape of inputs, by name."""
    header = json.dumps({name: [list(shape) for shape in shapes] for name, shapes in ranges.items()}).encode()
    return _MAGIC + len(header).to_bytes(8, "little") + header + graph


class FakeTensorRT:
    """The module. cuda: whose memory and stream plans use."""

    def __init__(self, cuda: FakeRuntime) -> None:
        self._cuda = cuda

    def __getattr__(self, name: str) -> Any:
        if name in _TAKEN_AS_THEY_ARE:
            return getattr(real, name)
        if name == "__name__":
            return "tensorrt_rtx"
        if name.startswith("__"):
            raise AttributeError(name)
        getattr(real, name)  # AttributeError for what the package does not have
        raise NotImplementedError(f"the fake does not know tensorrt_rtx.{name}")

    def Runtime(self, logger: Any) -> FakeTensorRTRuntime:
        return FakeTensorRTRuntime(self._cuda, logger)


class FakeTensorRTRuntime:
    def __init__(self, cuda: FakeRuntime, logger: Any) -> None:
        self._cuda, self.logger = cuda, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        if not serialized_engine.startswith(_MAGIC):
            return None
        return FakeEngine(self._cuda, serialized_engine)


class FakeEngine:
    def __init__(self, cuda: FakeRuntime, plan: bytes) -> None:
        begin = len(_MAGIC) + 8
        end = begin + int.from_bytes(plan[len(_MAGIC) : begin], "little")
        self.ranges: dict[str, list[Shape]] = {
            name: [tuple(shape) for shape in shapes] for name, shapes in json.loads(plan[begin:end]).items()
        }
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

    def _updated_cache(self, output: str) -> str | None:
        """The input that an output is the further state of; new rows by themselves are shorter than any."""
        kind, _, place = output.partition(".")
        cache = self.inputs.get(f"{_IN_PLACE.get(kind)}.{place}")
        return cache.name if cache is not None and cache.shape == self.outputs[output].shape else None

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, runtime_config: FakeRuntimeConfig) -> FakeContext:
        strategy = runtime_config.strategy
        assert strategy == real.ExecutionContextAllocationStrategy.USER_MANAGED, "who owns the activations?"
        return FakeContext(self)


class FakeRuntimeConfig:
    """What a context of RTX is made with."""

    strategy: Any = real.ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: Any) -> bool:
        self.strategy = strategy
        return True

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        return True


class FakeRuntimeCache:
    """taken: how many caches of an earlier start were taken in this process."""

    taken = 0

    def deserialize(self, blob: bytes) -> bool:
        FakeRuntimeCache.taken += blob == b"compiled"
        return blob == b"compiled"

    def serialize(self) -> bytes:
        return b"compiled"


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, Shape] = {
            name: tuple(value.shape) for name, value in engine.inputs.items() if name not in engine.ranges
        }
        self._addresses: dict[str, int] = {}
        self._activations: tuple[int, int] | None = None

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
        return fits

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.inputs and name not in self._engine.outputs:
            return False
        if memory % _ADDRESS_ALIGNMENT:
            raise Fault(f"{name} lies at {memory:#x}, no multiple of {_ADDRESS_ALIGNMENT}")
        self._addresses[name] = memory
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
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        engine.cuda.put(lambda: self._run(shapes, addresses), stream_handle)
        return True

    def _run(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        engine = self._engine
        feeds = {name: self._array(name, shapes[name], addresses[name]) for name in engine.inputs}
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
