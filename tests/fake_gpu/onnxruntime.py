"""`onnxruntime` of the package onnxruntime-gpu as far as the backend uses it: graphs run on the CPU, in device memory.

Functions take what those of the installed package declare. A run does not wait for the backend's stream, as a GPU's
would not: what is pending there when it begins is an error.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import onnxruntime as real

from fake_gpu.cuda import FakeRuntime
from fake_gpu.memory import Fault

PROVIDER = "CUDAExecutionProvider"
# Those that the backend uses of https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, where no
# installed package lists them, and values that they take.
_PROVIDER_OPTIONS = {
    "use_tf32": {"0", "1"},
    "arena_extend_strategy": {"kNextPowerOfTwo", "kSameAsRequested"},
    "cudnn_conv_algo_search": {"EXHAUSTIVE", "HEURISTIC", "DEFAULT"},
}

Call = TypeVar("Call", bound=Callable[..., Any])


def _declared_by(function: Any) -> Callable[[Call], Call]:
    """For a function that stands in for `function`: refuse arguments that it does not take."""
    declared = inspect.signature(function)

    def checked(fake: Call) -> Call:
        @functools.wraps(fake)
        def call(*arguments: Any, **named: Any) -> Any:
            declared.bind(*arguments, **named)
            return fake(*arguments, **named)

        return call  # type: ignore[return-value]

    return checked


class FakeOnnxRuntime:
    """The module. cuda: whose memory caches are in.

    on_cpu: operators that the provider does not take. starts: whether the provider does; without it there is the CPU's.
    failure: what it raises as it starts. missing: what `preload_dlls` says of libraries that are not there
    """

    __version__ = real.__version__
    cuda_version = "13.0"
    SessionOptions = real.SessionOptions

    def __init__(
        self,
        cuda: FakeRuntime,
        on_cpu: Sequence[str] = (),
        starts: bool = True,
        failure: str = "",
        missing: Sequence[str] = (),
    ) -> None:
        self._cuda, self._on_cpu, self._starts, self._failure, self._missing = cuda, on_cpu, starts, failure, missing
        self._preloaded = False

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"]  # whether it starts or not

    def preload_dlls(self) -> None:
        self._preloaded = True
        for line in self._missing:
            print(line)

    def InferenceSession(self, *arguments: Any, **named: Any) -> FakeSession:
        if not self._preloaded:
            raise Fault("a session before the libraries of CUDA that pip installed are loaded")
        if self._failure:
            raise RuntimeError(self._failure)
        return FakeSession(self._cuda, self._on_cpu, self._starts, *arguments, **named)


class FakeSession:
    def __init__(
        self, cuda: FakeRuntime, on_cpu: Sequence[str], starts: bool, graph: bytes, options: Any, **named: Any
    ) -> None:
        inspect.signature(real.InferenceSession).bind(graph, options, **named)
        (provider, settings), fallback = named.pop("providers")
        assert (provider, fallback) == (PROVIDER, "CPUExecutionProvider")
        for name, value in settings.items():
            assert value in _PROVIDER_OPTIONS[name]
        self.settings: Mapping[str, str] = settings
        self.cuda, self._on_cpu, self._starts = cuda, on_cpu, starts
        options.intra_op_num_threads = 1
        self._session = real.InferenceSession(graph, options, providers=[fallback], **named)

    @_declared_by(real.InferenceSession.get_providers)
    def get_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"] if self._starts else ["CPUExecutionProvider"]

    @_declared_by(real.InferenceSession.get_provider_graph_assignment_info)
    def get_provider_graph_assignment_info(self) -> list[Any]:
        """Each node in a part of its own, as for providers of kernels (OrtApi::Session_GetEpGraphAssignmentInfo)."""
        nodes = [node for part in self._session.get_provider_graph_assignment_info() for node in part.get_nodes()]
        return [
            SimpleNamespace(
                ep_name="CPUExecutionProvider" if node.op_type in self._on_cpu else PROVIDER,
                get_nodes=functools.partial(list, [node]),
            )
            for node in nodes
        ]

    @_declared_by(real.InferenceSession.get_outputs)
    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    @_declared_by(real.InferenceSession.run)
    def run(self, output_names: Any, input_feed: Any) -> Any:
        return self._session.run(output_names, input_feed)

    @_declared_by(real.InferenceSession.io_binding)
    def io_binding(self) -> FakeBinding:
        return FakeBinding(self.cuda, self._session.io_binding())

    @_declared_by(real.InferenceSession.run_with_iobinding)
    def run_with_iobinding(self, iobinding: FakeBinding) -> None:
        if not iobinding.copied:
            raise Fault("a run while its inputs are still being copied (SynchronizeBoundInputs)")
        if self.cuda.pending:
            raise Fault("a run on a stream of its own while work on its caches is pending on another")
        self._session.run_with_iobinding(iobinding.binding)


class FakeBinding:
    """What lies at "cuda" is given to the real binding as memory of the host, once it is found to be the device's."""

    def __init__(self, cuda: FakeRuntime, binding: Any) -> None:
        self.binding, self.copied = binding, True
        self._cuda = cuda

    @_declared_by(real.IOBinding.bind_cpu_input)
    def bind_cpu_input(self, name: str, arr_on_cpu: np.ndarray) -> None:
        self.copied = False
        self.binding.bind_cpu_input(name, arr_on_cpu.copy())

    @_declared_by(real.IOBinding.synchronize_inputs)
    def synchronize_inputs(self) -> None:
        self.copied = True

    @_declared_by(real.IOBinding.bind_input)
    def bind_input(self, name: str, *place: Any) -> None:
        self.binding.bind_input(name, *self._host(*place))

    @_declared_by(real.IOBinding.bind_output)
    def bind_output(self, name: str, *place: Any) -> None:
        self.binding.bind_output(name, *(place if place == ("cpu",) else self._host(*place)))

    @_declared_by(real.IOBinding.get_outputs)
    def get_outputs(self) -> Any:
        return self.binding.get_outputs()

    def _host(self, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], address: int) -> Any:
        assert (device_type, device_id) == ("cuda", 0)
        self._cuda.memory.view(address, math.prod(shape) * np.dtype(element_type).itemsize)
        return "cpu", 0, element_type, shape, address
