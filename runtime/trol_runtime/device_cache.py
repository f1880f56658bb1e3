"""The KV cache of a session on a GPU: whole length from the start, at one address, written in place by the plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trol_runtime.cuda_device import ADDRESS_ALIGNMENT, Box, CudaDevice, DeviceMemory, power_of_two
from trol_runtime.errors import LimitError
from trol_runtime.model_config import Decoder

_WHAT = "KV cache"


def aligned_length(tokens: int, token_bytes: int) -> int:
    """The least length of at least so many tokens at which every row of a cache begins where TensorRT takes addresses.

    token_bytes: of all heads of one layer's keys
    """
    step = ADDRESS_ALIGNMENT // math.gcd(token_bytes, ADDRESS_ALIGNMENT)
    return math.ceil(tokens / step) * step


class DeviceBuffer(NamedTuple):
    """Keys or values of a layer: (rows, kv heads, capacity, head width) at an address."""

    address: int
    shape: tuple[int, int, int, int]


class DeviceCache:
    """What `KVCache` is, on the device.

    Keys and values of all layers are one block, (2 * layers, rows, kv heads, capacity, head width): rows are repeated
    or moved in all layers by one copy.
    max_tokens: the length of every row, the same whatever it holds, as the caches of a plan have a constant one
    dtype: of keys and values, the plans'
    """

    def __init__(
        self, device: CudaDevice, decoder: Decoder, max_tokens: int, dtype: Any, keeps_second_pass: bool = False
    ) -> None:
        self._device, self._decoder, self._max_tokens = device, decoder, max_tokens
        self._dtype = np.dtype(dtype)
        self._keeps_second_pass = keeps_second_pass
        self._first: DeviceMemory | None = None
        self._second: DeviceMemory | None = None
        self.first_pass: list[DeviceBuffer] = []
        self.second_pass: list[DeviceBuffer] = []

    @property
    def capacity(self) -> int:
        return self._max_tokens if self.first_pass else 0

    @property
    def nbytes(self) -> int:
        return (self._first.nbytes if self._first else 0) + self.second_pass_nbytes

    @property
    def second_pass_nbytes(self) -> int:
        return self._second.nbytes if self._second else 0

    def row(self, index: int) -> DeviceCache:
        """A view of one row: writing to it writes here."""
        view = DeviceCache(self._device, self._decoder, self._max_tokens, self._dtype)
        view._first, view._second = self._first, self._second  # so that the memory outlives the view
        view.first_pass = [self._row_of(buffer, index) for buffer in self.first_pass]
        view.second_pass = [self._row_of(buffer, index) for buffer in self.second_pass]
        return view

    def allocate(self, rows: int, tokens: int) -> None:
        """Fresh zeroed buffers; what was there is gone. Raises LimitError, the cache then being empty."""
        assert tokens <= self._max_tokens
        self.clear()
        try:
            self._set_first(self._zeros(rows), rows)
            if self._keeps_second_pass:
                self.add_second_pass()
        except LimitError:
            self.clear()
            raise

    def add_second_pass(self) -> None:
        """Buffers for the second pass where there are none; raises LimitError."""
        rows = self.first_pass[0].shape[0]
        self._second = self._zeros(rows)
        self.second_pass = self._buffers(self._second, rows)

    def drop_second_pass(self) -> None:
        self._keeps_second_pass = False
        self._second, self.second_pass = None, []

    def clear(self) -> None:
        self._first, self.first_pass = None, []
        self._second, self.second_pass = None, []

    def fitted(self, kept: int, tokens: int) -> DeviceCache:
        """Itself: it has room for every row that the engine admits."""
        assert max(kept, tokens) <= self._max_tokens
        return self

    def reserve(self, tokens: int) -> None:
        assert tokens <= self._max_tokens

    def copy(self, tokens: int) -> DeviceCache:
        """A cache of its own with the same rows; raises LimitError."""
        assert tokens <= self._max_tokens
        copy = DeviceCache(self._device, self._decoder, self._max_tokens, self._dtype, self._keeps_second_pass)
        if self._first:
            copy._set_first(self._copied(self._first), self.first_pass[0].shape[0])
        if self._second:
            copy._second = self._copied(self._second)
            copy.second_pass = self._buffers(copy._second, self.second_pass[0].shape[0])
        return copy

    def repeat(self, times: int) -> None:
        """Every row `times` times, as neighbours; the second pass stays with one row of each. Raises LimitError."""
        first, rows = self._whole()
        repeated = self._block(rows * times)
        for copy in range(times):
            self._device.copy_rows(
                repeated.address + copy * self._row_bytes,
                times * self._row_bytes,
                first.address,
                self._row_bytes,
                self._row_bytes,
                2 * self._decoder.layers * rows,
            )
        self._set_first(repeated, rows * times)

    def thin(self, times: int) -> None:
        """Undo `repeat`: keep the first of every `times` rows. Raises LimitError."""
        first, rows = self._whole()
        kept = self._block(rows // times)
        self._device.copy_rows(
            kept.address,
            self._row_bytes,
            first.address,
            times * self._row_bytes,
            self._row_bytes,
            2 * self._decoder.layers * rows // times,
        )
        self._set_first(kept, rows // times)

    def move(self, sources: Sequence[int], begin: Sequence[int], end: Sequence[int]) -> None:
        """Overwrite positions begin[r] to end[r] of every row r with those of row sources[r], all rows at once."""
        moved = [row for row, source in enumerate(sources) if row != source and end[row] > begin[row]]
        aside = [self._aside(end[row] - begin[row]) for row in moved]
        for row, tail in zip(moved, aside, strict=True):
            self._device.copy_box(tail, self.positions(self.first_pass, sources[row], begin[row], end[row]))
        for row, tail in zip(moved, aside, strict=True):
            self._device.copy_box(self.positions(self.first_pass, row, begin[row], end[row]), tail)

    def positions(self, buffers: Sequence[DeviceBuffer], row: int, begin: int, end: int) -> Box:
        """Positions begin to end of a row in all of `first_pass` or `second_pass`."""
        pitch = self._max_tokens * self.token_bytes
        return Box(
            address=buffers[0].address + row * self._row_bytes + begin * self.token_bytes,
            width=(end - begin) * self.token_bytes,
            height=self._decoder.kv_heads,
            depth=len(buffers),
            pitch=pitch,
            lines=(buffers[1].address - buffers[0].address) // pitch,
        )

    @property
    def token_bytes(self) -> int:
        """Of one head of one layer's keys."""
        return self._decoder.head_dim * self._dtype.itemsize

    @property
    def _row_bytes(self) -> int:
        """Of one layer's keys."""
        return self._decoder.kv_heads * self._max_tokens * self.token_bytes

    def _aside(self, tokens: int) -> Box:
        """Room for so many positions of a row, close together. Its memory is reused once the stream is past it.

        In powers of two: beams move a token more at every step, and sizes of which each is used once are of no reuse.
        """
        width, height, depth = tokens * self.token_bytes, self._decoder.kv_heads, 2 * self._decoder.layers
        memory = self._device.allocate(power_of_two(width * height * depth), _WHAT)
        return Box(memory.address, width, height, depth, pitch=width, lines=height, memory=memory)

    def _whole(self) -> tuple[DeviceMemory, int]:
        """The first pass's block and its rows."""
        assert self._first is not None
        return self._first, self.first_pass[0].shape[0]

    def _block(self, rows: int) -> DeviceMemory:
        return self._device.allocate(2 * self._decoder.layers * rows * self._row_bytes, _WHAT)

    def _zeros(self, rows: int) -> DeviceMemory:
        """Zero, never uninitialised: a masked NaN would still poison a softmax."""
        block = self._block(rows)
        self._device.fill_zero(block.address, block.nbytes)
        return block

    def _copied(self, block: DeviceMemory) -> DeviceMemory:
        copied = self._device.allocate(block.nbytes, _WHAT)
        self._device.copy(copied.address, block.address, block.nbytes)
        return copied

    def _set_first(self, block: DeviceMemory, rows: int) -> None:
        self._first, self.first_pass = block, self._buffers(block, rows)

    def _buffers(self, block: DeviceMemory, rows: int) -> list[DeviceBuffer]:
        shape = (rows, self._decoder.kv_heads, self._max_tokens, self._decoder.head_dim)
        return [
            DeviceBuffer(block.address + number * rows * self._row_bytes, shape)
            for number in range(2 * self._decoder.layers)
        ]

    def _row_of(self, buffer: DeviceBuffer, index: int) -> DeviceBuffer:
        return DeviceBuffer(buffer.address + index * self._row_bytes, (1, *buffer.shape[1:]))
