"""The CPU backend: ONNX Runtime on the weights inside engine.plan, mapped in place and shared by all sessions.

One session holds the language model: an `If` selects prefill or decode, so both use one set of weights. The vision
graph is a session of its own, made when the first picture comes.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.errors import EngineFileError, MissingExtraError
from trol_runtime.kv_cache import KVCache
from trol_runtime.onnx_external_data import redirect_external_data
from trol_runtime.system_report import installed_version, onnxruntime_conflict

if TYPE_CHECKING:
    import onnxruntime

TARGET = "cpu"
LANGUAGE_ENTRY = "plans/cpu/model.onnx"
VISION_ENTRY = "plans/cpu/vision.onnx"
# The integer input by which the language model selects a branch, and its value per role.
ROLE_INPUT = "role"
ROLE_NUMBER = {"prefill": 0, "decode": 1}


class CpuBackend:
    """Runs the graphs of one engine file; keeps no state of a conversation, so sessions can share it."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Map the language model. threads: of one run; None lets ONNX Runtime take the physical cores.

        Raises EngineFileError when the file has no CPU plan or ONNX Runtime refuses it, MissingExtraError without ONNX
        Runtime.
        """
        self._bundle = bundle
        self._threads = threads
        decoder = bundle.manifest.model.decoder
        self._language = self._session(LANGUAGE_ENTRY)
        self._vision: onnxruntime.InferenceSession | None = None
        # What the branch not taken would read: fed because every input of a model must be, never looked at.
        self._unused = {
            "input_ids": np.zeros((1, 1), np.int64),
            "image_embeds": np.zeros((1, decoder.hidden_size), np.float32),
            "token_ids": np.zeros(1, np.int64),
            "write_index": np.zeros(1, np.int64),
            "attention_mask": np.zeros((1, 1, 1, 1), np.bool_),
        }
        self._cache_names = [f"{layer}.{part}" for layer in range(decoder.layers) for part in ("key", "value")]

    def encode(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(crops, 3, h, w) -> image embeddings (crops, tokens, hidden)"""
        if self._vision is None:
            self._vision = self._session(VISION_ENTRY)
        (embeds,) = self._vision.run(None, {"pixel_values": pixel_values})
        return embeds

    def prefill(
        self,
        cache: KVCache,
        input_ids: NDArray[np.int64],
        image_embeds: NDArray[np.float32] | None,
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Run one prompt into a cache of one row from position 0.

        input_ids (1, s); image_embeds (n, hidden) or None; cos, sin (1, s, d/2); returns the last position's logits (1,
        vocab)
        """
        inputs: dict[str, NDArray] = {"input_ids": input_ids, "cos": cos, "sin": sin}
        if image_embeds is not None:
            inputs["image_embeds"] = image_embeds
        return self._run("prefill", inputs, cache)

    def decode(
        self,
        cache: KVCache,
        token_ids: NDArray[np.int64],
        write_index: NDArray[np.int64],
        attention_mask: NDArray[np.bool_],
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """One token per row: token_ids, write_index (b,); attention_mask (b, 1, 1, capacity) -> logits (b, vocab)"""
        inputs: dict[str, NDArray] = {"token_ids": token_ids, "cos": cos, "sin": sin}
        inputs |= {"write_index": write_index, "attention_mask": attention_mask}
        return self._run("decode", inputs, cache)

    def _run(self, role: str, inputs: dict[str, NDArray], cache: KVCache) -> NDArray[np.float32]:
        """One run with each buffer bound as input and output at one address, so that it is written in place."""
        binding = self._language.io_binding()
        number = np.array(ROLE_NUMBER[role], np.int64)
        for name, array in {**self._unused, **inputs, ROLE_INPUT: number}.items():
            binding.bind_cpu_input(name, np.asarray(array, order="C"))
        binding.bind_output("logits", "cpu")
        for name, buffer in zip(self._cache_names, cache.buffers, strict=True):
            place = ("cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *place)
            binding.bind_output(f"present.{name}", *place)
        self._language.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    def _session(self, entry: str) -> onnxruntime.InferenceSession:
        if entry not in self._bundle.entries:
            raise EngineFileError(
                f"{self._bundle.path} has no CPU plan ({entry} is missing); export it with: trol-export --target cpu"
            )
        return mapped_session(self._bundle, self._bundle.read(entry), self._threads)


def mapped_session(bundle: Bundle, model: bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on `model`, whose weights are mapped from the bundle's arena.

    model: an ONNX model that refers to `weights.safetensors`. Raises EngineFileError when ONNX Runtime refuses it,
    MissingExtraError without ONNX Runtime.
    """
    ort = require_onnxruntime()
    path = bundle.path.resolve()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors: warnings of the optimiser mean nothing to a user
    if threads:
        options.intra_op_num_threads = threads
    # Weights stay where they are, in the mapped file: packing would copy each into anonymous memory.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    # Activations of a long prompt are not kept for the decode steps after it.
    options.enable_cpu_mem_arena = False
    try:
        model = redirect_external_data(model, path.name, bundle.entries[ARENA_ENTRY].offset)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's error classes have no common base
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise EngineFileError(
            f"{path}: onnxruntime {ort.__version__} cannot load a graph ({reason}); upgrade onnxruntime or export the "
            "engine again"
        ) from error


def require_onnxruntime() -> ModuleType:
    """The module onnxruntime; raises MissingExtraError when it is missing, or installed twice over itself."""
    conflict = onnxruntime_conflict({name: installed_version(name) for name in ("onnxruntime", "onnxruntime-gpu")})
    if conflict is not None:
        raise MissingExtraError(conflict)
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError(
            "the CPU backend needs onnxruntime, not installed here; on Python 3.11 or newer install it with: "
            "pip install 'trol-export[cpu]'"
        ) from None
    return onnxruntime
