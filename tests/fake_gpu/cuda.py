"""`cuda.bindings.runtime` as far as the backend uses it; one stream, whose work is done when it is waited for.

Memory of the host is read and written no sooner: a GPU may read it whenever it comes to it.
"""

from __future__ import annotations

import re
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import runtime as real

from fake_gpu.memory import POISON, Fault, Memory

Work = Callable[[], None]
OK = real.cudaError_t.cudaSuccess

_PASSED_ON = (
    "cudaError_t",
    "cudaMemcpyKind",
    "cudaStreamCaptureMode",
    "cudaStreamNonBlocking",
    "cudaMemcpy3DParms",
    "make_cudaExtent",
    "make_cudaPitchedPtr",
)


class FakeRuntime:
    """The module. memory: of the device. Everything that is asked of the stream goes through `put`."""

    def __init__(self, total_bytes: int = 1 << 40) -> None:
        self.memory = Memory(total_bytes)
        self._queue: list[Work] = []
        self._streams: dict[int, int] = {}  # and the devices they are on
        self._made_streams = 0
        self._device = threading.local()  # the current one, which every thread has for itself
        self._capture: list[Work] | None = None
        self._graphs: dict[int, list[Work]] = {}
        self._made_graphs = 0
        self._executables: dict[int, list[Work]] = {}
        self.launched_graphs = 0
        self.capturable = True

    def __getattribute__(self, name: str) -> Any:
        if name in _PASSED_ON:
            return getattr(real, name)
        value = object.__getattribute__(self, name)
        if name.startswith("cuda"):
            return _as_declared(name, value)
        return value

    def put(self, work: Work, stream: int) -> None:
        """Have something done when everything asked before is done; a capture takes it instead."""
        if stream not in self._streams:
            raise Fault(f"stream {stream} does not exist")
        if self._streams[stream] != self._current_device:
            raise Fault("work for the stream of another device than the thread's current one")
        (self._queue if self._capture is None else self._capture).append(work)

    @property
    def _current_device(self) -> int:
        return getattr(self._device, "number", 0)

    @property
    def pending(self) -> bool:
        """Whether something was asked of the stream that is not done."""
        return bool(self._queue)

    # What the backend calls, in the order of CUDA's reference manual.

    def cudaGetDevice(self) -> tuple[Any, int]:
        return OK, self._current_device

    def cudaSetDevice(self, device: int) -> tuple[Any]:
        self._device.number = device
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        assert flags == real.cudaStreamNonBlocking, "a stream that waits for the legacy stream"
        self._made_streams += 1
        self._streams[self._made_streams] = self._current_device
        return OK, self._made_streams

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        del self._streams[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        if self._capture is not None:
            return (real.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        if stream not in self._streams:
            raise Fault(f"stream {stream} does not exist")
        queue, self._queue = self._queue, []
        for work in queue:
            work()
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:
        assert stream in self._streams
        assert mode in real.cudaStreamCaptureMode
        if self._capture is not None:
            raise Fault("a capture within a capture")
        self._capture = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, int]:
        assert stream in self._streams
        captured, self._capture = self._capture, None
        if captured is None:
            raise Fault("the end of a capture that did not begin")
        if not self.capturable:
            return real.cudaError_t.cudaErrorStreamCaptureInvalidated, 0
        self._made_graphs += 1
        self._graphs[self._made_graphs] = captured
        return OK, self._made_graphs

    def cudaMalloc(self, size: int) -> tuple[Any, int]:
        address = self.memory.allocate(size)
        return (real.cudaError_t.cudaErrorMemoryAllocation, 0) if address is None else (OK, address)

    def cudaFree(self, devPtr: int) -> tuple[Any]:
        self.cudaStreamSynchronize(next(iter(self._streams)))  # cudaFree waits
        self.memory.free(devPtr)
        return (OK,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return OK, self.memory.total - self.memory.in_use, self.memory.total

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any]:
        self.memory.view(devPtr, count)

        def work() -> None:
            self.memory.view(devPtr, count)[:] = value

        self.put(work, stream)
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any]:
        kinds = real.cudaMemcpyKind
        if self._capture is not None:
            return (real.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        if kind == kinds.cudaMemcpyHostToDevice:
            self.memory.view(dst, count)
            source = HostBytes(src, count)
            self.put(lambda: _assign(self.memory.view(dst, count), source.now()), stream)
        elif kind == kinds.cudaMemcpyDeviceToHost:
            self.memory.view(src, count)
            target = HostBytes(dst, count)
            target.now()[:] = POISON  # whoever reads before waiting reads this
            self.put(lambda: _assign(target.now(), self.memory.view(src, count)), stream)
        else:
            assert kind == kinds.cudaMemcpyDeviceToDevice
            self._copy_lines(dst, count, src, count, count, 1, stream)
        return (OK,)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: Any, stream: int
    ) -> tuple[Any]:
        assert kind == real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        if width > min(dpitch, spitch):
            return (real.cudaError_t.cudaErrorInvalidPitchValue,)
        self._copy_lines(dst, dpitch, src, spitch, width, height, stream)
        return (OK,)

    def cudaMemcpy3DAsync(self, p: Any, stream: int) -> tuple[Any]:
        assert p.kind == real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        width, height, depth = p.extent.width, p.extent.height, p.extent.depth
        for plane in range(depth):
            target, source = (int(end.ptr) + plane * end.pitch * end.ysize for end in (p.dstPtr, p.srcPtr))
            self._copy_lines(target, p.dstPtr.pitch, source, p.srcPtr.pitch, width, height, stream)
        return (OK,)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, int]:
        assert flags == 0
        self._executables[graph] = self._graphs[graph]
        return OK, graph

    def cudaGraphDestroy(self, graph: int) -> tuple[Any]:
        del self._graphs[graph]
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[Any]:
        del self._executables[graphExec]
        return (OK,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Any]:
        if graphExec not in self._executables:
            raise Fault("a graph that was destroyed is launched")
        self.launched_graphs += 1
        for work in self._executables[graphExec]:
            self.put(work, stream)
        return (OK,)

    def _copy_lines(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, lines: int, stream: int
    ) -> None:
        for begin, pitch in ((target, target_pitch), (source, source_pitch)):
            self.memory.view(begin, pitch * (lines - 1) + width)
        if (
            target < source + source_pitch * (lines - 1) + width
            and source < target + target_pitch * (lines - 1) + width
        ):
            raise Fault("a copy within the device whose ranges overlap")

        def work() -> None:
            for line in range(lines):
                data = self.memory.view(source + line * source_pitch, width)
                _assign(self.memory.view(target + line * target_pitch, width), data)

        self.put(work, stream)


def _as_declared(name: str, function: Any) -> Callable[..., Any]:
    """The function, refusing calls with another number of arguments than the installed package declares."""
    declared = re.match(rf"{name}\((.*?)\)", getattr(real, name).__doc__ or "")
    assert declared, f"cuda.bindings does not say what {name} takes"
    count = len([one for one in declared[1].split(",") if one.strip()])

    def call(*arguments: Any) -> Any:
        assert len(arguments) == count, f"{name} takes {count} arguments, {len(arguments)} are given"
        return function(*arguments)

    return call


class HostBytes:
    """Bytes of the host, for as long as the array that has them is kept by somebody else.

    CUDA is told no more than an address: the array is looked for among the variables of the callers, the nearest first.
    """

    def __init__(self, address: int, nbytes: int) -> None:
        frame = sys._getframe(1)
        while not (found := [one for one in frame.f_locals.values() if _begins_at(one, address)]):
            if frame.f_back is None:
                raise Fault(f"{address:#x} is no array of the host")
            frame = frame.f_back
        assert found[0].nbytes >= nbytes
        self._array, self._nbytes = weakref.ref(found[0]), nbytes

    def now(self) -> np.ndarray:
        """What the array holds, uint8; raises Fault when it is gone."""
        array = self._array()
        if array is None:
            raise Fault("an array of the host was let go before its copy was done")
        return array.reshape(-1).view(np.uint8)[: self._nbytes]


def _begins_at(value: object, address: int) -> bool:
    return isinstance(value, np.ndarray) and value.ctypes.data == address


def _assign(target: np.ndarray, values: np.ndarray) -> None:
    target[:] = values
