"""The CUDA backend: the CPU plan in ONNX Runtime on an NVIDIA GPU, by the package onnxruntime-gpu.

Of what a file holds it takes the CPU plan and not `graphs/*.onnx`: there all roles are branches of one session, so that
the GPU holds the weights once, where three sessions hold them three times; and it computes in fp32 whatever is stored,
so that answers are the CPU's. The price is memory: weights stored in fp16 take twice their size, since ONNX Runtime
widens them once as it loads. Plans of TensorRT keep them as they are.

Not run on a GPU yet.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from contextlib import redirect_stdout
from ctypes import CDLL
from io import StringIO
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from trol_runtime.bundle import Bundle
from trol_runtime.cpu_backend import cpu_graphs
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.device_cache import DeviceBuffer, DeviceCache
from trol_runtime.errors import EngineFileError, LimitError, MissingExtraError, TrolError
from trol_runtime.manifest import Manifest
from trol_runtime.memory_need import fp32_weight_bytes, readable
from trol_runtime.one_line import one_line
from trol_runtime.ort_backend import CACHE_DTYPE, OrtBackend
from trol_runtime.ort_session import open_session, require_onnxruntime, session_options

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "CUDAExecutionProvider"
# https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#configuration-options
_PROVIDER_OPTIONS = {
    "use_tf32": "0",  # on by default: the factors of fp32 products would be rounded to 10 bits
    "arena_extend_strategy": "kSameAsRequested",  # by default twice as much each time, which caches may need
    "cudnn_conv_algo_search": "HEURISTIC",  # by default all are timed anew for every number of crops
}
# Convolutions need it; `preload_dlls` passes over its absence.
_CUDNN = "libcudnn.so.9"
_INSTALL = "pip install 'trol-export[gpu]'"


class CudaBackend(OrtBackend):
    """`OrtBackend` with caches in device memory; inputs and logits cross over in every run, caches never do."""

    DEVICE = "cuda"

    def __init__(self, bundle: Bundle) -> None:
        """Copy the weights to the GPU; warns once of nodes that run on the CPU.

        Raises MissingExtraError without onnxruntime-gpu, what it needs, or CUDA's Python package, LimitError when the
        weights do not fit, EngineFileError when the file has no CPU plan or ONNX Runtime refuses it, and TrolError
        where the GPU does not start.
        """
        graphs = cpu_graphs(bundle)
        _require_cuda()
        self._device = CudaDevice()
        _require_memory(bundle.manifest, self._device)
        language, vision = (_cuda_session(bundle, graph) for graph in graphs)
        _warn_of_nodes_on_the_cpu(language, vision)
        super().__init__(bundle, language, vision)

    def new_cache(self, keeps_second_pass: bool) -> DeviceCache:
        """An empty cache for a session."""
        manifest = self._bundle.manifest
        return DeviceCache(
            self._device, manifest.model.decoder, manifest.limits.max_seq, CACHE_DTYPE, keeps_second_pass
        )

    def _buffer(self, shape: tuple[int, int, int, int]) -> DeviceBuffer:
        nbytes = math.prod(shape) * np.dtype(CACHE_DTYPE).itemsize
        self._buffer_memory = self._device.allocate(nbytes, "KV cache")  # as long as the backend is there
        return DeviceBuffer(self._buffer_memory.address, shape)

    def _address(self, buffer: DeviceBuffer) -> int:
        return buffer.address

    def _before_run(self, binding: onnxruntime.IOBinding) -> None:
        """Wait for our stream and for the copies of inputs: a run has a stream of its own, which waits for neither.

        https://github.com/microsoft/onnxruntime/issues/26609, and SynchronizeBoundInputs in onnxruntime_c_api.h. When a
        run returns its stream is done: https://github.com/microsoft/onnxruntime/issues/28539. Both could share our
        stream (`user_compute_stream`); between two runs little is ever pending on it, so that waiting costs as little.
        """
        self._device.synchronize()
        binding.synchronize_inputs()


def _require_cuda() -> None:
    """Raise MissingExtraError unless onnxruntime is onnxruntime-gpu and finds the libraries that it needs."""
    ort = require_onnxruntime()
    missing = _preload(ort)
    if not missing and PROVIDER not in ort.get_available_providers():
        raise MissingExtraError(
            f"--backend cuda needs onnxruntime-gpu, found onnxruntime {ort.__version__}, which is for the CPU; run: "
            f"pip uninstall -y onnxruntime && {_INSTALL}"
        )
    missing = missing or _refusal_of(_CUDNN)
    if missing:
        raise MissingExtraError(
            f"onnxruntime-gpu {ort.__version__} needs the libraries of CUDA {ort.cuda_version} and cuDNN 9, found not "
            f"all ({one_line(missing)}); run: {_INSTALL}"
        )


def _preload(ort: ModuleType) -> str:
    """Load the libraries that pip installed, which are on no search path; returns what is said of missing ones."""
    said = StringIO()
    with redirect_stdout(said):  # it does not raise, it prints
        ort.preload_dlls()
    return said.getvalue()


def _refusal_of(library: str) -> str:
    """Why a library cannot be loaded, "" if it can."""
    try:
        CDLL(library)
    except OSError as error:
        return str(error)
    return ""


def _require_memory(manifest: Manifest, device: CudaDevice) -> None:
    """Raise LimitError when the weights alone do not fit."""
    need = fp32_weight_bytes(manifest)
    free, total = device.memory()
    if need > free:
        raise LimitError(
            f"the GPU has no {readable(need)} for weights in fp32, in which --backend cuda computes: {readable(free)} "
            f"of {readable(total)} are free; close what else uses it, or take --backend tensorrt-rtx, which keeps "
            "weights as they are stored"
        )


def _cuda_session(bundle: Bundle, model: bytes) -> onnxruntime.InferenceSession:
    """A session that runs on the GPU: where the provider does not start, ONNX Runtime would take the CPU in silence."""
    options = session_options(bundle)
    # Weights get memory of exactly their size, beside the arena of activations.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = open_session(bundle, model, options, [(PROVIDER, _PROVIDER_OPTIONS), "CPUExecutionProvider"])
    except EngineFileError as error:
        if "CUDA failure" in str(error):
            raise _not_started(one_line(error.__cause__)) from error
        raise
    if PROVIDER not in session.get_providers():
        raise _not_started(f"of its providers only {session.get_providers()[0]} does")
    return session


def _not_started(reason: str) -> TrolError:
    ort = require_onnxruntime()
    return TrolError(
        f"onnxruntime-gpu {ort.__version__} does not start on this GPU ({reason}); it needs a driver for CUDA "
        f"{ort.cuda_version} or newer, what is here says: trol-inspect --system"
    )


def _warn_of_nodes_on_the_cpu(*sessions: onnxruntime.InferenceSession) -> None:
    """One warning with the number of nodes by operator, if there are any."""
    assigned = [part for session in sessions for part in session.get_provider_graph_assignment_info()]
    nodes = sum(len(part.get_nodes()) for part in assigned)
    types = Counter(node.op_type for part in assigned if part.ep_name != PROVIDER for node in part.get_nodes())
    if types:
        listed = ", ".join(f"{count} {name}" for name, count in types.most_common())
        warnings.warn(
            f"{types.total()} of {nodes} nodes run on the CPU, as ONNX Runtime placed them ({listed}); what they share "
            "with the GPU is copied there or back in every step",
            stacklevel=3,
        )
