"""TensorRT plans in a process: deserialised, given the weights they share, and run on one stream.

Both packages, `tensorrt` and `tensorrt_rtx`, are used through what their Python interfaces have in common; what only
RTX has is in `trol_runtime.rtx_config`. Not run on a GPU yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trol_runtime.cuda_device import CudaDevice, DeviceMemory
from trol_runtime.device_arena import DeviceArena
from trol_runtime.errors import EngineFileError, LimitError, TrolError
from trol_runtime.loading_process import never_destroy
from trol_runtime.memory_need import readable
from trol_runtime.one_line import one_line
from trol_runtime.rtx_config import RTX_MODULE, RtxConfig
from trol_runtime.tensorrt_log import quiet_log


class Tensor(NamedTuple):
    """Where an input or output of a run lies, and its shape."""

    address: int
    shape: tuple[int, ...]


class TensorRTPlan:
    """One plan with a context of its own; its activations lie in memory that it is lent.

    name: for messages. role: what it runs, None where that is nothing of an engine
    dtypes: of inputs and outputs
    Raises EngineFileError when TensorRT refuses the plan, LimitError where the GPU has no memory for it.
    """

    _engine: Any = None
    _context: Any = None
    _rtx: RtxConfig | None = None

    def __init__(
        self, trt: Any, runtime: Any, data: bytes, name: str, device: CudaDevice, role: str | None = None
    ) -> None:
        self._runtime, self._device, self.name = runtime, device, name
        library = f"{trt.__name__} {trt.__version__}"
        engine = self._engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._lack_of_memory(f"its {readable(len(data))}", len(data)) or EngineFileError(
                f"{name}: {library} refuses this plan ({self._last_error()}); build it again with: "
                "trol-export --add-target"
            )
        if trt.__name__ == RTX_MODULE:
            self._rtx = RtxConfig(trt, engine, data, role)
        self._context = engine.create_execution_context(
            self._rtx.config if self._rtx else trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._context is None:
            raise self._lack_of_memory("a context") or TrolError(
                f"{name}: {library} gives no context ({self._last_error()}); look at the GPU with: "
                "trol-inspect --system"
            )
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self.inputs = [one for one in names if engine.get_tensor_mode(one) == trt.TensorIOMode.INPUT]
        self.outputs = [one for one in names if engine.get_tensor_mode(one) == trt.TensorIOMode.OUTPUT]
        self.dtypes: dict[str, np.dtype[Any]] = {
            one: np.dtype(trt.nptype(engine.get_tensor_dtype(one))) for one in names
        }

    def __del__(self) -> None:
        """Each goes before what it was made from (TensorRT documentation, "How TensorRT Works", object lifetimes)."""
        if not self._device.process.is_this:
            never_destroy(self)
            return
        self._context = None
        self._rtx = None
        self._engine = None

    @property
    def captures_itself(self) -> bool:
        """Whether the library makes CUDA graphs of runs, so that nobody else may."""
        return self._rtx is not None

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
            raise TrolError(
                f"{self.name}: TensorRT does not start a run ({self._last_error()}); look at the GPU with: "
                "trol-inspect --system"
            )

    def keep_compiled(self) -> None:
        """After a run that was waited for: keep what was compiled in it for the next start."""
        if self._rtx is not None:
            self._rtx.compiled.keep()

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise TrolError(f"{self.name}: TensorRT takes no address for {name}; please report this engine")

    def _lack_of_memory(self, what: str, need: int = 0) -> LimitError | None:
        """What to raise where TensorRT gave nothing for want of memory: it says so, or less than `need` bytes are free.

        Of a plan it need not say so (Runtime.deserialize_cuda_engine: "None if it could not be deserialized").
        """
        free, _ = self._device.memory()
        if need <= free and not re.search("out ?of ?memory", self._last_error(), re.IGNORECASE):
            return None
        remedy = "export with a smaller --max-seq or --max-batch"
        if not self._device.holds("weights"):  # each plan has its own
            remedy = "build plans that share their weights with: trol-export --add-target ... --weights shared"
        return self._device.lack_of_memory(f"memory for {what} of {self.name} ({self._last_error()})", remedy)

    def _last_error(self) -> str:
        return one_line(getattr(self._runtime.logger, "last_error", "no reason given"), 200)


def load_plans(
    trt: Any, plans: Mapping[str, bytes], device: CudaDevice, arena: DeviceArena | None
) -> dict[str, TensorRTPlan]:
    """Plans by role, ready to run: over one arena of weights, and in turn over one memory for activations.

    arena: None for plans that hold their weights
    Raises as TensorRTPlan does, LimitError without memory for the activations.
    """
    runtime = trt.Runtime(quiet_log(trt))
    loaded = {
        role: TensorRTPlan(trt, runtime, plans[role], f"the plan of {role}", device, role)
        for role in plans  # read one at a time: each may hold all weights
    }
    activations = device.allocate(max(plan.activation_bytes for plan in loaded.values()), "activations")
    for plan in loaded.values():
        plan.lend_activations(activations)
        if arena is not None:
            plan.share_weights(arena)
    return loaded
