"""The KV cache of a session on the CPU: fp32, in place, grown in steps because attention costs what is allocated."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trol_runtime.errors import LimitError
from trol_runtime.memory_need import readable
from trol_runtime.model_config import Decoder

# Decode attends over the whole buffer, valid or not: a step keeps that waste small and growing rare.
STEP_TOKENS = 256


class KVCache:
    """Keys and values of every layer for `rows` sequences.

    buffers: float32 (rows, kv heads, capacity, head width), key and value of layer 0, of layer 1, ...; unwritten is
      zero, never uninitialised: a masked NaN would still poison a softmax.
    """

    def __init__(self, decoder: Decoder, max_tokens: int) -> None:
        self._decoder = decoder
        self._max_tokens = max_tokens
        self.buffers: list[NDArray[np.float32]] = []

    @property
    def capacity(self) -> int:
        """Tokens a row can hold before the buffers grow."""
        return self.buffers[0].shape[2] if self.buffers else 0

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def row(self, index: int) -> KVCache:
        """A view of one row: writing to it writes here. It cannot grow."""
        view = KVCache(self._decoder, self._max_tokens)
        view.buffers = [buffer[index : index + 1] for buffer in self.buffers]
        return view

    def allocate(self, rows: int, tokens: int) -> None:
        """Fresh zeroed buffers for at least `tokens` per row; what was there is gone.

        Raises LimitError, the cache then being empty, when there is no memory for them.
        """
        self.buffers = []  # before the new ones: two caches at once are twice the memory
        shape = self._shape(rows, tokens)
        try:
            self.buffers = [np.zeros(shape, np.float32) for _ in range(2 * self._decoder.layers)]
        except MemoryError as error:
            raise self._too_large(shape) from error

    def reserve(self, tokens: int) -> None:
        """Room for `tokens` per row, keeping what is there; grows one buffer at a time.

        Raises LimitError, the cache then being empty, when there is no memory for it.
        """
        old = self.capacity
        if tokens <= old:
            return
        shape = self._shape(len(self.buffers[0]), tokens)
        try:
            for index, buffer in enumerate(self.buffers):
                grown = np.zeros(shape, np.float32)
                grown[:, :, :old] = buffer
                self.buffers[index] = grown
        except MemoryError as error:
            self.buffers = []  # some grown, some not: no cache any more
            raise self._too_large(shape) from error

    def _shape(self, rows: int, tokens: int) -> tuple[int, int, int, int]:
        """Of one buffer, whole steps long as far as the engine's limit allows."""
        capacity = min(-(-tokens // STEP_TOKENS) * STEP_TOKENS, max(self._max_tokens, tokens))
        return rows, self._decoder.kv_heads, capacity, self._decoder.head_dim

    def _too_large(self, shape: tuple[int, int, int, int]) -> LimitError:
        rows, _, capacity, _ = shape
        need = 2 * self._decoder.layers * math.prod(shape) * np.dtype(np.float32).itemsize
        return LimitError(
            f"the KV cache of {rows} row(s) of {capacity} tokens needs {readable(need)}, which the system does not "
            "give; free memory, or send fewer rows or a shorter prompt"
        )
