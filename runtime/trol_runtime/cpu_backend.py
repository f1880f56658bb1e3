"""The CPU backend: ONNX Runtime on the weights inside engine.plan, mapped in place and shared by all sessions.

One session holds the language model: `If`s select prefill, decode or extend, so all use one set of weights. The vision
graph, which shares none of them, is a session of its own. Both are made at once: the file may be replaced later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.cache_names import PAST, PAST_SECOND_PASS, PRESENT, PRESENT_SECOND_PASS, cache_names
from trol_runtime.errors import EngineFileError, LimitError, MissingExtraError, TrolError
from trol_runtime.installed_packages import installed_version
from trol_runtime.known_conflicts import onnxruntime_conflict
from trol_runtime.kv_cache import KVCache
from trol_runtime.native_runs import native_run
from trol_runtime.one_line import one_line
from trol_runtime.onnx_external_data import redirect_external_data

if TYPE_CHECKING:
    import onnxruntime

TARGET = "cpu"
LANGUAGE_ENTRY = "plans/cpu/model.onnx"
VISION_ENTRY = "plans/cpu/vision.onnx"
# The integer input by which the language model selects a branch, and its value per role.
ROLE_INPUT = "role"
ROLE_NUMBER = {"prefill": 0, "decode": 1, "extend": 2}


class CpuBackend:
    """Runs the graphs of one engine file; keeps no state of a conversation, so sessions and threads can share it."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Map the language model. threads: of one run; None lets ONNX Runtime take the physical cores.

        Raises EngineFileError when the file has no CPU plan or ONNX Runtime refuses it, MissingExtraError without ONNX
        Runtime.
        """
        self._bundle = bundle
        self._threads = threads
        self._process = os.getpid()
        self._language = self._session(LANGUAGE_ENTRY)
        if len(self._language.get_outputs()) < 1 + 4 * bundle.manifest.model.decoder.layers:
            raise EngineFileError(
                f"{bundle.path} was written by an earlier version (its CPU plan has no extend role); export it again"
            )
        self._vision = self._session(VISION_ENTRY)
        bundle.require_same_file()  # weights are mapped by the file's name
        decoder = bundle.manifest.model.decoder
        # What the branches not taken would read: fed because every input of a model must be, never looked at.
        self._unused = {
            "input_ids": np.zeros((1, 1), np.int64),
            "image_embeds": np.zeros((1, decoder.hidden_size), np.float32),
            "token_ids": np.zeros(1, np.int64),
            "write_index": np.zeros(1, np.int64),
            "attention_mask": np.zeros((1, 1, 1, 1), np.bool_),
        }
        self._no_cache = [np.zeros((1, decoder.kv_heads, 1, decoder.head_dim), np.float32)] * (2 * decoder.layers)
        # Past and present name of every cache, in the order of a KVCache's buffers.
        self._first_pass, self._second_pass = (
            list(zip(cache_names(past, decoder.layers), cache_names(present, decoder.layers), strict=True))
            for past, present in ((PAST, PRESENT), (PAST_SECOND_PASS, PRESENT_SECOND_PASS))
        )

    def new_cache(self, keeps_second_pass: bool) -> KVCache:
        """An empty cache for a session."""
        manifest = self._bundle.manifest
        return KVCache(manifest.model.decoder, manifest.limits.max_seq, keeps_second_pass)

    def encode(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(crops, 3, h, w) -> image embeddings (crops, tokens, hidden)"""
        self._require_same_process()
        with self._one_line_errors(), native_run():
            (embeds,) = self._vision.run(None, {"pixel_values": pixel_values})
        return embeds

    def prefill(
        self,
        cache: KVCache,
        input_ids: NDArray[np.int64],
        image_embeds: NDArray[np.float32],
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Run one prompt into a cache of one row from position 0.

        input_ids (1, s); image_embeds (n, hidden), one per image token; cos, sin (1, s, d/2); returns the last
        position's logits (1, vocab)
        """
        inputs = _prompt_inputs(input_ids, image_embeds, cos, sin)
        return self._run("prefill", inputs, cache.first_pass, self._no_cache)

    def extend(
        self,
        cache: KVCache,
        input_ids: NDArray[np.int64],
        image_embeds: NDArray[np.float32],
        write_index: NDArray[np.int64],
        attention_mask: NDArray[np.bool_],
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Run a further part of a prompt into a cache of one row that holds both passes of the part before it.

        Inputs as in `prefill`, of the new part; write_index (1,), the tokens before it; attention_mask (1, 1, s,
        capacity); returns the last position's logits (1, vocab)
        """
        inputs = _prompt_inputs(input_ids, image_embeds, cos, sin)
        inputs |= {"write_index": write_index, "attention_mask": attention_mask}
        return self._run("extend", inputs, cache.first_pass, cache.second_pass)

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
        return self._run("decode", inputs, cache.first_pass, self._no_cache)

    def _run(
        self, role: str, inputs: dict[str, NDArray], first_pass: list[NDArray], second_pass: list[NDArray]
    ) -> NDArray[np.float32]:
        """One run with each buffer bound as input and output at one address, so that it is written in place."""
        self._require_same_process()
        with self._one_line_errors(), native_run():
            binding = self._language.io_binding()
            number = np.array(ROLE_NUMBER[role], np.int64)
            for name, array in {**self._unused, **inputs, ROLE_INPUT: number}.items():
                binding.bind_cpu_input(name, np.asarray(array, order="C"))
            binding.bind_output("logits", "cpu")
            for names, buffers in ((self._first_pass, first_pass), (self._second_pass, second_pass)):
                for (past, present), buffer in zip(names, buffers, strict=True):
                    place = ("cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
                    binding.bind_input(past, *place)
                    binding.bind_output(present, *place)
            self._language.run_with_iobinding(binding)
            return binding.get_outputs()[0].numpy()

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """ONNX Runtime has classes of its own for everything: lack of memory, graphs that are not the model's."""
        try:
            yield
        except Exception as error:
            if "alloc" in str(error):
                raise LimitError(
                    "there is not enough memory for the activations of this run; free some, send a shorter prompt or "
                    "fewer pictures, or read prompts in parts: prefill_chunk=256, --prefill-chunk 256"
                ) from error
            reason = one_line(error)
            raise EngineFileError(
                f"{self._bundle.path}: a graph fails as it runs ({reason}); check the file with: trol-inspect --verify"
            ) from error

    def _require_same_process(self) -> None:
        """A forked child has none of the parent's threads: ONNX Runtime would wait for them for ever."""
        if os.getpid() != self._process:
            raise TrolError(
                f"the engine was loaded in process {self._process} and is used in its fork {os.getpid()}; load it "
                "after forking, or start processes with multiprocessing's spawn"
            )

    def _session(self, entry: str) -> onnxruntime.InferenceSession:
        if entry not in self._bundle.entries:
            raise EngineFileError(
                f"{self._bundle.path} has no CPU plan ({entry} is missing); export it with: trol-export --target cpu"
            )
        return mapped_session(self._bundle, self._bundle.read(entry), self._threads)


def _prompt_inputs(ids: NDArray, image_embeds: NDArray, cos: NDArray, sin: NDArray) -> dict[str, NDArray]:
    inputs = {"input_ids": ids, "cos": cos, "sin": sin}
    # Without a picture the graph still wants a row, which it does not use: the one in `_unused`.
    return inputs | {"image_embeds": image_embeds} if len(image_embeds) else inputs


def mapped_session(bundle: Bundle, model: bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on `model`, whose weights are mapped from the bundle's arena.

    model: an ONNX model that refers to `weights.safetensors`. Raises EngineFileError when ONNX Runtime refuses it,
    MissingExtraError without ONNX Runtime.
    """
    ort = require_onnxruntime()
    path = bundle.path.resolve()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # nothing: errors are raised too, warnings of the optimiser mean nothing to a user
    if threads:
        options.intra_op_num_threads = threads
    # Weights stay where they are, in the mapped file: packing would copy each into anonymous memory.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    # Activations of a long prompt are not kept for the decode steps after it.
    options.enable_cpu_mem_arena = False
    try:
        arena = bundle.entries[ARENA_ENTRY]
        model = redirect_external_data(model, path.name, arena.offset, arena.size)
        # Without enable_fallback=0 it would try again, and print to stdout.
        with native_run():
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's error classes have no common base
        reason = one_line((str(error) or type(error).__name__).splitlines()[0])
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
