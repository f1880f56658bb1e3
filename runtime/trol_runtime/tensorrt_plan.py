"""TensorRT plans in a process: deserialised, given the weights they share, and run on one stream.

Both packages, `tensorrt` and `tensorrt_rtx`, are used through what their Python interfaces have in common. Not run on a
GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trol_runtime.cuda_device import CudaDevice, DeviceMemory
from trol_runtime.device_arena import DeviceArena
from trol_runtime.errors import EngineFileError, TrolError
from trol_runtime.one_line import one_line
from trol_runtime.rtx_compiled import RtxCompiled
from trol_runtime.tensorrt_log import quiet_log

RTX_MODULE = "tensorrt_rtx"


class Tensor(NamedTuple):
    """Where an input or output of a run lies, and its shape."""

    address: int
    shape: tuple[int, ...]


class TensorRTPlan:
    """One plan with a context of its own; its activations lie in memory that it is lent.

    name: for messages. dtypes: of inputs and outputs
    Raises EngineFileError when TensorRT refuses the plan.
    """

    def __init__(self, trt: Any, runtime: Any, data: bytes, name: str, device: CudaDevice) -> None:
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineFileError(
                f"{name}: {trt.__name__} {trt.__version__} refuses this plan ({_last_error(runtime)}); build it again "
                "with: trol-export --add-target"
            )
        self._trt, self._engine, self._device, self.name = trt, engine, device, name
        self._compiled: RtxCompiled | None = None
        self._context = self._new_context(data)
        if self._context is None:
            raise TrolError(f"{name}: {trt.__name__} {trt.__version__} gives no context ({_last_error(runtime)})")
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self.inputs = [one for one in names if engine.get_tensor_mode(one) == trt.TensorIOMode.INPUT]
        self.outputs = [one for one in names if engine.get_tensor_mode(one) == trt.TensorIOMode.OUTPUT]
        self.dtypes: dict[str, np.dtype[Any]] = {
            one: np.dtype(trt.nptype(engine.get_tensor_dtype(one))) for one in names
        }

    def _new_context(self, data: bytes) -> Any:
        """A context that is lent its memory; RTX's knows what was compiled for this GPU before."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._trt.__name__ != RTX_MODULE:
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        cache = config.create_runtime_cache()
        self._compiled = RtxCompiled(self._trt, data, cache)
        config.set_runtime_cache(cache)
        return self._engine.create_execution_context(config)

    @property
    def activation_bytes(self) -> int:
        """What the largest shapes of the profile need."""
        return int(self._engine.device_memory_size_v2)

    def lend_activations(self, memory: DeviceMemory) -> None:
        """Memory for activations; plans that run one after the other may have the same."""
        self._context.set_device_memory(memory.address, memory.nbytes)
        self._activations = memory  # for as long as this plan may run

    def share_weights(self, arena: DeviceArena) -> None:
        """Have the inputs that are weights lie where the arena has them."""
        for name in self.inputs:
            if name in arena:
                self._set_address(name, arena.address(name))
        self._arena = arena  # for as long as this plan may run

    def largest(self, name: str) -> tuple[int, ...]:
        """The largest shape of an input."""
        return tuple(self._engine.get_tensor_profile_shape(name, 0)[2])

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Give inputs their addresses and shapes, and outputs their addresses.

        Raises TrolError for a shape outside the profile, which no session asks for.
        """
        for name, tensor in tensors.items():
            if name in self.inputs and not self._context.set_input_shape(name, tensor.shape):
                low, _, high = self._engine.get_tensor_profile_shape(name, 0)
                raise TrolError(
                    f"{self.name}: {name} is {tensor.shape}, the plan is built for {tuple(low)} to {tuple(high)}; "
                    "export the engine with other limits"
                )
            self._set_address(name, tensor.address)
        missing = self._context.infer_shapes()
        if missing:
            raise TrolError(f"{self.name}: no shape for {', '.join(missing)}; please report this engine")

    def enqueue(self) -> None:
        """Put the run on the stream; returns before it is done."""
        if not self._context.execute_async_v3(self._device.stream):
            raise TrolError(f"{self.name}: TensorRT does not start a run; look at the GPU with: trol-inspect --system")

    def keep_compiled(self) -> None:
        """After a run that was waited for: keep what was compiled in it for the next start."""
        if self._compiled is not None:
            self._compiled.keep()

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise TrolError(f"{self.name}: TensorRT takes no address for {name}; please report this engine")


def load_plans(
    trt: Any, plans: Mapping[str, bytes], device: CudaDevice, arena: DeviceArena | None
) -> dict[str, TensorRTPlan]:
    """Plans by role, ready to run: over one arena of weights, and in turn over one memory for activations.

    arena: None for plans that hold their weights
    Raises as TensorRTPlan does, LimitError without memory for the activations.
    """
    runtime = trt.Runtime(quiet_log(trt))
    loaded = {role: TensorRTPlan(trt, runtime, data, f"the plan of {role}", device) for role, data in plans.items()}
    activations = device.allocate(max(plan.activation_bytes for plan in loaded.values()), "activations")
    for plan in loaded.values():
        plan.lend_activations(activations)
        if arena is not None:
            plan.share_weights(arena)
    return loaded


def _last_error(runtime: Any) -> str:
    return one_line(getattr(runtime.logger, "last_error", "no reason given"), 200)
