"""The KV cache of a session on the CPU: fp32, in place, grown in steps because attention costs what is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from trol_runtime.errors import LimitError
from trol_runtime.memory_need import readable
from trol_runtime.model_config import Decoder

# Decode attends over the whole buffer, valid or not: a step keeps that waste small and growing rare.
STEP_TOKENS = 256

Buffer = NDArray[np.float32]


class KVCache:
    """Keys and values of every layer for `rows` sequences.

    first_pass: float32 (rows, kv heads, capacity, head width), key and value of layer 0, of layer 1, ...; unwritten is
      zero, never uninitialised: a masked NaN would still poison a softmax. Decode goes on from these.
    second_pass: the same of the second pass over a prompt, which only the continuation of a prompt looks at; empty
      unless `keeps_second_pass`
    """

    def __init__(self, decoder: Decoder, max_tokens: int, keeps_second_pass: bool = False) -> None:
        self._decoder = decoder
        self._max_tokens = max_tokens
        self._keeps_second_pass = keeps_second_pass
        self.first_pass: list[Buffer] = []
        self.second_pass: list[Buffer] = []

    @property
    def capacity(self) -> int:
        """Tokens a row can hold before the buffers grow."""
        return self.first_pass[0].shape[2] if self.first_pass else 0

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.first_pass) + self.second_pass_nbytes

    @property
    def second_pass_nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.second_pass)

    def row(self, index: int) -> KVCache:
        """A view of one row: writing to it writes here. It cannot grow."""
        view = KVCache(self._decoder, self._max_tokens)
        view.first_pass = [buffer[index : index + 1] for buffer in self.first_pass]
        view.second_pass = [buffer[index : index + 1] for buffer in self.second_pass]
        return view

    def allocate(self, rows: int, tokens: int) -> None:
        """Fresh zeroed buffers for at least `tokens` per row; what was there is gone.

        Raises LimitError, the cache then being empty, when there is no memory for them.
        """
        self.clear()  # before the new ones: two caches at once are twice the memory
        shape = self._shape(rows, tokens)
        with self._all_or_nothing(shape):
            self.first_pass = self._zeros(shape)
            if self._keeps_second_pass:
                self.second_pass = self._zeros(shape)

    def add_second_pass(self) -> None:
        """Buffers for the second pass where there are none; raises LimitError like `allocate`."""
        shape = self.first_pass[0].shape
        with self._all_or_nothing(shape):
            self.second_pass = self._zeros(shape)

    def drop_second_pass(self) -> None:
        self._keeps_second_pass = False
        self.second_pass = []

    def clear(self) -> None:
        self.first_pass, self.second_pass = [], []

    def fitted(self, kept: int, tokens: int) -> KVCache:
        """A cache that holds the first `kept` tokens of every row, with room for `tokens` and not for many more.

        Itself, or a smaller copy: one long prompt must not cost all later ones. Raises like `reserve`.
        """
        cache = self.copy(kept) if self.capacity > 2 * tokens else self
        cache.reserve(tokens)
        return cache

    def reserve(self, tokens: int) -> None:
        """Room for `tokens` per row, keeping what is there; grows one buffer at a time.

        Raises LimitError, the cache then being empty, when there is no memory for it.
        """
        if tokens > self.capacity:
            self._remake(self.first_pass, tokens)
            self._remake(self.second_pass, tokens)

    def copy(self, tokens: int) -> KVCache:
        """A cache of its own with the first `tokens` of every row and room for one more; raises like `allocate`."""
        copy = KVCache(self._decoder, self._max_tokens, self._keeps_second_pass)
        copy.first_pass = [buffer[:, :, :tokens] for buffer in self.first_pass]
        copy.second_pass = [buffer[:, :, :tokens] for buffer in self.second_pass]
        copy._remake(copy.first_pass, tokens + 1)
        copy._remake(copy.second_pass, tokens + 1)
        return copy

    def repeat(self, times: int) -> None:
        """Every row `times` times, as neighbours; the second pass stays with one row of each. Raises like `reserve`."""
        with self._all_or_nothing(self._shape(times * len(self.first_pass[0]), self.capacity)):
            for index, buffer in enumerate(self.first_pass):
                self.first_pass[index] = np.repeat(buffer, times, axis=0)

    def thin(self, times: int) -> None:
        """Undo `repeat`: keep the first of every `times` rows. Raises like `reserve`."""
        with self._all_or_nothing(self._shape(len(self.first_pass[0]) // times, self.capacity)):
            for index, buffer in enumerate(self.first_pass):
                self.first_pass[index] = buffer[::times].copy()

    def move(self, sources: Sequence[int], begin: Sequence[int], end: Sequence[int]) -> None:
        """Overwrite positions begin[r] to end[r] of every row r with those of row sources[r], all rows at once."""
        moved = [row for row, source in enumerate(sources) if row != source]
        for buffer in self.first_pass:
            tails = [buffer[sources[row], :, begin[row] : end[row]].copy() for row in moved]
            for row, tail in zip(moved, tails, strict=True):
                buffer[row, :, begin[row] : end[row]] = tail

    def _remake(self, buffers: list[Buffer], tokens: int) -> None:
        """Put a copy of its own, with room for `tokens`, in the place of each buffer."""
        for index, buffer in enumerate(buffers):
            shape = self._shape(len(buffer), tokens)
            with self._all_or_nothing(shape):
                larger = np.zeros(shape, np.float32)
                larger[:, :, : buffer.shape[2]] = buffer
                buffers[index] = larger

    def _zeros(self, shape: tuple[int, ...]) -> list[Buffer]:
        return [np.zeros(shape, np.float32) for _ in range(2 * self._decoder.layers)]

    def _shape(self, rows: int, tokens: int) -> tuple[int, int, int, int]:
        """Of one buffer, whole steps long as far as the engine's limit allows."""
        capacity = min(-(-tokens // STEP_TOKENS) * STEP_TOKENS, max(self._max_tokens, tokens))
        return rows, self._decoder.kv_heads, capacity, self._decoder.head_dim

    @contextmanager
    def _all_or_nothing(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Some buffers new, some not, is no cache any more: after Ctrl-C or without memory for `shape` it is empty."""
        try:
            yield
        except BaseException as error:
            self.clear()
            if not isinstance(error, MemoryError):
                raise
            passes = 2 if self._keeps_second_pass else 1
            rows, _, capacity, _ = shape
            need = passes * 2 * self._decoder.layers * math.prod(shape) * np.dtype(np.float32).itemsize
            raise LimitError(
                f"the KV cache of {rows} row(s) of {capacity} tokens needs {readable(need)}, which the system does not "
                "give; free memory, or send fewer rows or a shorter prompt"
            ) from error
