"""The engine's joined model in ONNX Runtime, on whichever device its sessions run: what the CPU and CUDA share.

One session holds the language model: `If`s select prefill, decode or extend, so all use one set of weights. The vision
graph, which shares none of them, is a session of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trol_runtime.array_types import Floats, Ids
from trol_runtime.bundle import Bundle
from trol_runtime.cache_names import PAST, PAST_SECOND_PASS, PRESENT, PRESENT_SECOND_PASS, cache_names
from trol_runtime.errors import EngineFileError, LimitError, TrolError
from trol_runtime.loading_process import LoadingProcess
from trol_runtime.native_runs import native_run
from trol_runtime.one_line import one_line

if TYPE_CHECKING:
    import onnxruntime

# The integer input by which the language model selects a branch, and its value per role.
ROLE_INPUT = "role"
ROLE_NUMBER = {"prefill": 0, "decode": 1, "extend": 2}

# Of caches: the joined model computes in fp32 whatever the engine stores.
CACHE_DTYPE = np.float32


class OrtBackend(ABC):
    """Runs the graphs of one engine file; keeps no state of a conversation, so sessions and threads can share it.

    A subclass says where caches lie: their buffers have a `shape`, and an address in the memory of DEVICE.
    """

    DEVICE: str  # as ONNX Runtime names it

    def __init__(
        self, bundle: Bundle, language: onnxruntime.InferenceSession, vision: onnxruntime.InferenceSession
    ) -> None:
        """Sessions on the joined model and the vision graph; raises EngineFileError for those of an earlier version."""
        decoder = bundle.manifest.model.decoder
        if len(language.get_outputs()) < 1 + 4 * decoder.layers:
            raise EngineFileError(
                f"{bundle.path} was written by an earlier version (its CPU plan has no extend role); export it again"
            )
        bundle.require_same_file()  # weights are mapped by the file's name
        self._bundle, self._language, self._vision = bundle, language, vision
        self._process = LoadingProcess()
        # What the branches not taken would read: fed because every input of a model must be, never looked at.
        self._unused = {
            "input_ids": np.zeros((1, 1), np.int64),
            "image_embeds": np.zeros((1, decoder.hidden_size), np.float32),
            "token_ids": np.zeros(1, np.int64),
            "write_index": np.zeros(1, np.int64),
            "attention_mask": np.zeros((1, 1, 1, 1), np.bool_),
        }
        self._no_cache = [self._buffer((1, decoder.kv_heads, 1, decoder.head_dim))] * (2 * decoder.layers)
        # Past and present name of every cache, in the order of a cache's buffers.
        self._first_pass, self._second_pass = (
            list(zip(cache_names(past, decoder.layers), cache_names(present, decoder.layers), strict=True))
            for past, present in ((PAST, PRESENT), (PAST_SECOND_PASS, PRESENT_SECOND_PASS))
        )

    @abstractmethod
    def new_cache(self, keeps_second_pass: bool) -> Any:
        """An empty cache for a session."""

    @abstractmethod
    def _buffer(self, shape: tuple[int, int, int, int]) -> Any:
        """One like those of a cache."""

    @abstractmethod
    def _address(self, buffer: Any) -> int:
        """Where it lies on the device."""

    @abstractmethod
    def _before_run(self, binding: onnxruntime.IOBinding) -> None:
        """Return when caches and inputs hold what was put there."""

    def encode(self, pixel_values: Floats) -> Floats:
        """(crops, 3, h, w) -> image embeddings (crops, tokens, hidden)"""
        self._process.require()
        with self._one_line_errors(), native_run():
            (embeds,) = self._vision.run(None, {"pixel_values": pixel_values})
        return embeds

    def prefill(self, cache: Any, input_ids: Ids, image_embeds: Floats, cos: Floats, sin: Floats) -> Floats:
        """Run one prompt into a cache of one row from position 0.

        input_ids (1, s); image_embeds (n, hidden), one per image token; cos, sin (1, s, d/2); returns the last
        position's logits (1, vocab)
        """
        inputs = _prompt_inputs(input_ids, image_embeds, cos, sin)
        return self._run("prefill", inputs, cache.first_pass, self._no_cache)

    def extend(
        self,
        cache: Any,
        input_ids: Ids,
        image_embeds: Floats,
        write_index: Ids,
        attention_mask: NDArray[np.bool_],
        cos: Floats,
        sin: Floats,
    ) -> Floats:
        """Run a further part of a prompt into a cache of one row that holds both passes of the part before it.

        Inputs as in `prefill`, of the new part; write_index (1,), the tokens before it; attention_mask (1, 1, s,
        capacity); returns the last position's logits (1, vocab)
        """
        inputs = _prompt_inputs(input_ids, image_embeds, cos, sin)
        inputs |= {"write_index": write_index, "attention_mask": attention_mask}
        return self._run("extend", inputs, cache.first_pass, cache.second_pass)

    def decode(
        self,
        cache: Any,
        token_ids: Ids,
        write_index: Ids,
        attention_mask: NDArray[np.bool_],
        cos: Floats,
        sin: Floats,
    ) -> Floats:
        """One token per row: token_ids, write_index (b,); attention_mask (b, 1, 1, capacity) -> logits (b, vocab)"""
        inputs: dict[str, NDArray] = {"token_ids": token_ids, "cos": cos, "sin": sin}
        inputs |= {"write_index": write_index, "attention_mask": attention_mask}
        return self._run("decode", inputs, cache.first_pass, self._no_cache)

    def _run(
        self, role: str, inputs: dict[str, NDArray], first_pass: Sequence[Any], second_pass: Sequence[Any]
    ) -> Floats:
        """One run with each buffer bound as input and output at one address, so that it is written in place."""
        self._process.require()
        with self._one_line_errors(), native_run():
            binding = self._language.io_binding()
            number = np.array(ROLE_NUMBER[role], np.int64)
            for name, array in {**self._unused, **inputs, ROLE_INPUT: number}.items():
                binding.bind_cpu_input(name, np.asarray(array, order="C"))
            binding.bind_output("logits", "cpu")
            for names, buffers in ((self._first_pass, first_pass), (self._second_pass, second_pass)):
                for (past, present), buffer in zip(names, buffers, strict=True):
                    place = (self.DEVICE, 0, CACHE_DTYPE, buffer.shape, self._address(buffer))
                    binding.bind_input(past, *place)
                    binding.bind_output(present, *place)
            self._before_run(binding)
            self._language.run_with_iobinding(binding)
            return binding.get_outputs()[0].numpy()

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """ONNX Runtime has classes of its own for everything: lack of memory, graphs that are not the model's."""
        try:
            yield
        except TrolError:
            raise
        except Exception as error:
            if "CUDA failure" in str(error):
                raise TrolError(
                    f"the GPU fails in a run ({one_line(error)}); look at the driver and what else runs there: "
                    "trol-inspect --system"
                ) from error
            if "alloc" in str(error):
                raise LimitError(
                    "there is not enough memory for the activations of this run; free some, send a shorter prompt or "
                    "fewer pictures, or read prompts in parts: prefill_chunk=256, --prefill-chunk 256"
                ) from error
            reason = one_line(error)
            raise EngineFileError(
                f"{self._bundle.path}: a graph fails as it runs ({reason}); check the file with: trol-inspect --verify"
            ) from error


def _prompt_inputs(ids: NDArray, image_embeds: NDArray, cos: NDArray, sin: NDArray) -> dict[str, NDArray]:
    inputs = {"input_ids": ids, "cos": cos, "sin": sin}
    # Without a picture the graph still wants a row, which it does not use: the one in `_unused`.
    return inputs | {"image_embeds": image_embeds} if len(image_embeds) else inputs
