"""The CPU backend: ONNX Runtime on the weights inside engine.plan, mapped in place and shared by all sessions.

Both of its ONNX Runtime sessions are made at once: the file may be replaced later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trol_runtime.bundle import Bundle
from trol_runtime.errors import EngineFileError
from trol_runtime.kv_cache import Buffer, KVCache
from trol_runtime.ort_backend import CACHE_DTYPE, OrtBackend
from trol_runtime.ort_session import open_session, session_options

if TYPE_CHECKING:
    import onnxruntime

TARGET = "cpu"
LANGUAGE_ENTRY = "plans/cpu/model.onnx"
VISION_ENTRY = "plans/cpu/vision.onnx"


class CpuBackend(OrtBackend):
    """`OrtBackend` with caches in numpy arrays."""

    DEVICE = "cpu"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Map the weights. threads: of one run; None lets ONNX Runtime take the physical cores.

        Raises EngineFileError when the file has no CPU plan or ONNX Runtime refuses it, MissingExtraError without ONNX
        Runtime.
        """
        language, vision = (mapped_session(bundle, graph, threads) for graph in cpu_graphs(bundle))
        super().__init__(bundle, language, vision)

    def new_cache(self, keeps_second_pass: bool) -> KVCache:
        """An empty cache for a session."""
        manifest = self._bundle.manifest
        return KVCache(manifest.model.decoder, manifest.limits.max_seq, keeps_second_pass)

    def _buffer(self, shape: tuple[int, int, int, int]) -> Buffer:
        return np.zeros(shape, CACHE_DTYPE)

    def _address(self, buffer: Buffer) -> int:
        return buffer.ctypes.data

    def _before_run(self, binding: onnxruntime.IOBinding) -> None:
        """They always do."""


def cpu_graphs(bundle: Bundle) -> tuple[bytes, bytes]:
    """The joined language model and the vision graph of the CPU plan; raises EngineFileError where there is none."""
    missing = [entry for entry in (LANGUAGE_ENTRY, VISION_ENTRY) if entry not in bundle.entries]
    if missing:
        raise EngineFileError(
            f"{bundle.path} has no CPU plan ({missing[0]} is missing); export it with: trol-export --target cpu"
        )
    return bundle.read(LANGUAGE_ENTRY), bundle.read(VISION_ENTRY)


def mapped_session(bundle: Bundle, model: bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on `model`, whose weights are mapped from the bundle's arena.

    model: an ONNX model that refers to `weights.safetensors`. Raises EngineFileError when ONNX Runtime refuses it,
    MissingExtraError without ONNX Runtime.
    """
    options = session_options(bundle)
    if threads:
        options.intra_op_num_threads = threads
    return open_session(bundle, model, options, ["CPUExecutionProvider"])
