"""One GPU through CUDA's runtime: memory, copies and graphs, all on one stream, where everything runs in order.

Threads take turns: what one puts on the stream while another captures would become part of that one's graph.
Memory that is freed is kept for the next allocation of its size: what runs later on the stream finds it free, and a
session that begins anew has its cache where the last one had it, so that captured graphs stay valid. Before more is
taken from the driver it gets back all that is kept: never is more taken than was in use at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any, NamedTuple

from numpy.typing import NDArray

from trol_runtime.errors import LimitError, MissingExtraError, TrolError
from trol_runtime.loading_process import LoadingProcess
from trol_runtime.memory_need import readable
from trol_runtime.native_runs import native_run

# Of what cudaMalloc gives (CUDA C++ Programming Guide, "Device Memory Accesses"), and of every address that TensorRT is
# given (IExecutionContext::setTensorAddress).
ADDRESS_ALIGNMENT = 256


def cuda_runtime() -> Any:
    """CUDA's runtime as a module; raises MissingExtraError without it."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingExtraError(
            "running on a GPU needs cuda.bindings, not installed here; what to install for this machine says: "
            "trol-inspect --system"
        ) from None
    return runtime


class DeviceMemory:
    """Bytes on the device; `free` gives them back, as does losing the last reference."""

    def __init__(self, device: CudaDevice, address: int, nbytes: int, what: str) -> None:
        self.address, self.nbytes = address, nbytes
        self._device, self._what = device, what

    def free(self) -> None:
        """Give the memory back; nothing that is asked of the device later may use it."""
        if self.address:
            self._device.take_back(self.address, self.nbytes, self._what)
            self.address = 0

    def __del__(self) -> None:
        with suppress(TrolError):  # in a fork, which has nothing to give back
            self.free()


class GrowingMemory:
    """Device memory at one address for as long as it is large enough; what: as in `CudaDevice.allocate`.

    It grows in powers of two: twice of what was needed is the most that it takes, and it seldom moves.
    """

    def __init__(self, device: CudaDevice, what: str) -> None:
        self._device, self._what = device, what
        self._memory: DeviceMemory | None = None

    def address(self, nbytes: int) -> int:
        """Where so many bytes have room; what lay there is gone if it had to grow. Raises LimitError."""
        if self._memory is None or self._memory.nbytes < nbytes:
            self._memory = None  # first, so that old and new are never there together
            self._memory = self._device.allocate(power_of_two(nbytes), self._what)
        return self._memory.address


def power_of_two(nbytes: int) -> int:
    """The smallest that is not less."""
    return 1 << (nbytes - 1).bit_length()


class Box(NamedTuple):
    """A part of a three-dimensional array: `depth` planes of `height` lines of `width` bytes.

    pitch: bytes from a line to the next. lines: from a plane to the next. memory: kept alive as long as the box
    """

    address: int
    width: int
    height: int
    depth: int
    pitch: int
    lines: int
    memory: DeviceMemory | None = None


class _Graph:
    """An instantiated graph, destroyed with its last reference."""

    def __init__(self, call: Callable[..., Any], captured: Any, stream: int) -> None:
        self._call, self._stream, self._executable = call, stream, None
        try:
            self._executable = call("cudaGraphInstantiate", captured, 0)
        finally:
            call("cudaGraphDestroy", captured)

    def launch(self) -> None:
        self._call("cudaGraphLaunch", self._executable, self._stream)

    def __del__(self) -> None:
        if self._executable is not None:
            with suppress(TrolError):  # in a fork, which has no graphs
                self._call("cudaGraphExecDestroy", self._executable)


class CudaDevice:
    """The device that is current in the thread that makes this, and a stream of its own; threads may differ in theirs.

    Its stream and the legacy stream wait for each other in nothing (CUDA Runtime API, "Stream synchronization
    behavior"): what another library does there while a graph is captured makes neither fail.
    Raises MissingExtraError without CUDA's Python package, TrolError without a driver or a GPU.
    """

    def __init__(self) -> None:
        self._cuda = cuda_runtime()
        self.process, self._lock = LoadingProcess(), RLock()
        self._turns = 0  # of the thread that has the lock, one within another
        self._free: dict[int, list[int]] = {}  # addresses by size
        self._in_use: Counter[str] = Counter()  # bytes by what they hold
        self._uploading: list[NDArray[Any]] = []  # since the stream was waited for
        self._number = int(self._checked("cudaGetDevice"))
        self.stream: int = int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def __del__(self) -> None:
        """Wait, and give everything back: whatever had memory here is gone by now."""
        with suppress(TrolError, AttributeError):  # in a fork, and where no stream was made
            self.synchronize()
            self._release_kept()
            self._call("cudaStreamDestroy", self.stream)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A thread's time alone with the device, in which it is the current one; the program does not end within it.

        Every call takes one, and whoever makes several that belong together. Raises TrolError in a fork.
        """
        self.process.require()
        with native_run(), self._lock:
            self._turns += 1
            try:
                if self._turns > 1:
                    yield
                else:
                    with self._current():
                        yield
            finally:
                self._turns -= 1

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Threads begin with device 0, and others' code may count on the one that it has set."""
        before = int(self._checked("cudaGetDevice"))
        if before == self._number:
            yield
            return
        self._checked("cudaSetDevice", self._number)
        try:
            yield
        finally:
            self._checked("cudaSetDevice", before)

    def allocate(self, nbytes: int, what: str) -> DeviceMemory:
        """Uninitialised memory.

        what: what it will hold, for messages: "weights", "KV cache", "activations"
        Raises LimitError with what the device holds already when there is not enough.
        """
        with self.turn():
            kept = self._free.get(nbytes)
            address = kept.pop() if kept else self._allocated(nbytes, what)
            self._in_use[what] += nbytes
            return DeviceMemory(self, address, nbytes, what)

    def take_back(self, address: int, nbytes: int, what: str) -> None:
        """Keep freed memory for the next allocation of its size."""
        with self.turn():
            self._in_use[what] -= nbytes
            self._free.setdefault(nbytes, []).append(address)

    def memory(self) -> tuple[int, int]:
        """Bytes that are free on the device, and all of them; what is kept for reuse counts as taken."""
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def holds(self, what: str) -> bool:
        """Whether something of this kind has memory here."""
        return self._in_use[what] > 0

    def lack_of_memory(self, wanted: str, remedy: str) -> LimitError:
        """What to raise where the GPU has no `wanted`, with what it holds and what is free.

        remedy: what helps beside closing other programs
        """
        free, total = self.memory()
        held = " + ".join(f"{readable(count)} of {name}" for name, count in self._in_use.items() if count)
        return LimitError(
            f"the GPU has no {wanted}: it holds {held or 'nothing of this engine'}, {readable(free)} of "
            f"{readable(total)} are free; close what else uses it, or {remedy}"
        )

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the device; it must not be changed before the stream was waited for.

        Until then it is kept alive here: an asynchronous copy from pageable memory "might be synchronous", and the
        driver "may" put the bytes into a buffer of its own (CUDA Runtime API, "API synchronization behavior"). Where a
        GPU reads pageable memory itself, nothing says that it does.
        """
        assert array.flags.c_contiguous
        with self.turn():
            self._uploading.append(array)
            self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous array from the device; waits for everything asked before."""
        assert array.flags.c_contiguous
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")
        self.synchronize()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Within the device; both ranges must be apart."""
        self._copy(target, source, nbytes, "cudaMemcpyDeviceToDevice")

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Within the device, `rows` times `width` bytes; a row begins a pitch behind the one before it."""
        if width and rows:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            self._call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, kind, self.stream)

    def copy_box(self, target: Box, source: Box) -> None:
        """Within the device, boxes of one size."""
        cuda = self._cuda
        call = cuda.cudaMemcpy3DParms()
        call.srcPtr, call.dstPtr = (
            cuda.make_cudaPitchedPtr(box.address, box.pitch, box.width, box.lines) for box in (source, target)
        )
        call.extent = cuda.make_cudaExtent(source.width, source.height, source.depth)
        call.kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy3DAsync", call, self.stream)

    def fill_zero(self, address: int, nbytes: int) -> None:
        self._call("cudaMemsetAsync", address, 0, nbytes, self.stream)

    def synchronize(self) -> None:
        """Return once everything asked so far is done."""
        with self.turn():
            self._call("cudaStreamSynchronize", self.stream)
            self._uploading.clear()

    def captured(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts on the stream, as one graph that the returned function launches; runs nothing yet."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.turn():
            self._call("cudaStreamBeginCapture", self.stream, mode)
            try:
                enqueue()
            except BaseException:  # a capture that failed must end, too
                with suppress(TrolError):
                    self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", self.stream))
                raise
            return _Graph(self._call, self._call("cudaStreamEndCapture", self.stream), self.stream).launch

    def _allocated(self, nbytes: int, what: str) -> int:
        self._release_kept()
        error, address = self._cuda.cudaMalloc(nbytes)
        if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            remedy = "take a smaller model" if what == "weights" else "export with a smaller --max-seq or --max-batch"
            raise self.lack_of_memory(f"{readable(nbytes)} for {what}", remedy)
        self._check("cudaMalloc", error)
        return int(address)

    def _release_kept(self) -> None:
        """Give kept memory back to the driver.

        cudaFree waits for what still uses it (CUDA Programming Guide, "Stream-Ordered Memory Allocator", introduction).
        """
        kept, self._free = self._free, {}  # what garbage collection takes back meanwhile is not among it
        for addresses in kept.values():
            for address in addresses:
                self._call("cudaFree", address)

    def _copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", target, source, nbytes, getattr(self._cuda.cudaMemcpyKind, kind), self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of CUDA's runtime: its result, several as a tuple, None for none."""
        with self.turn():
            return self._checked(name, *arguments)

    def _checked(self, name: str, *arguments: Any) -> Any:
        """`_call` within a turn."""
        error, *results = getattr(self._cuda, name)(*arguments)
        self._check(name, error)
        return results[0] if len(results) == 1 else tuple(results) or None

    def _check(self, name: str, error: Any) -> None:
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise TrolError(
                f"CUDA refuses {name} ({error.name}); look at the driver and what else runs there: "
                "trol-inspect --system"
            )
