"""Decode steps as a CUDA graph: a step with the addresses and shapes of the one before is launched as one piece.

A decode step is hundreds of small kernels, whose launches cost the host more than they cost the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from trol_runtime.cuda_device import CudaDevice
from trol_runtime.errors import TrolError
from trol_runtime.tensorrt_plan import Tensor


class Enqueued(Protocol):
    """The part of a plan that is needed here."""

    @property
    def captures_itself(self) -> bool: ...

    def bind(self, tensors: Mapping[str, Tensor]) -> None: ...

    def enqueue(self) -> None: ...


class DecodeGraph:
    """The graph of the last kind of step.

    There is one: a graph is good for as long as its context is not changed, and another kind of step changes it
    (TensorRT documentation, "CUDA Graphs"). What cannot be captured is run as it is, as is what its library captures.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._bound: Mapping[str, Tensor] | None = None
        self._launch: Callable[[], None] | None = None
        self._capturable = True

    def run(self, plan: Enqueued, tensors: Mapping[str, Tensor]) -> None:
        """Put a step on the stream; of its kind, the first as it is: TensorRT may set something up in it."""
        if tensors != self._bound:
            self._launch, self._bound = None, None
            plan.bind(tensors)
            plan.enqueue()
            self._bound = dict(tensors)
            return
        if self._launch is None and self._capturable and not plan.captures_itself:
            try:
                self._launch = self._device.captured(plan.enqueue)
            except TrolError:  # the host takes part in some step of the plan
                self._capturable = False
        if self._launch is None:
            plan.enqueue()
        else:
            self._launch()
