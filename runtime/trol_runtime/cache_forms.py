"""How what a run computes gets into a cache: plans write it in place, or give it as rows that are put there behind it.

Modern plans do the first, legacy ones the second (`trol_engines.legacy_graph`). All in which their runs differ is a
`CacheUse`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trol_runtime.array_types import Ids
from trol_runtime.cache_names import PAST, PAST_SECOND_PASS, PRESENT, PRESENT_SECOND_PASS, cache_names
from trol_runtime.cuda_device import ADDRESS_ALIGNMENT, Box, CudaDevice, GrowingMemory
from trol_runtime.device_cache import DeviceBuffer, DeviceCache
from trol_runtime.tensorrt_plan import Tensor

_TWO_PASSES = ("extend",)  # the roles that take and give the second pass, too


class Prefix(NamedTuple):
    """What lies in a cache before a run.

    write_index: int64 (rows,), the tokens of each row
    attention_mask: bool (rows, 1, new tokens, capacity), what each new token attends to, itself among it
    """

    write_index: Ids
    attention_mask: NDArray[np.bool_]


class CacheUse(NamedTuple):
    """What a run has to do with its cache.

    inputs: of the host, by name
    tensors: inputs and outputs on the device, by name
    finish: puts on the stream, behind the run, what is left to do
    """

    inputs: Mapping[str, NDArray[Any]]
    tensors: Mapping[str, Tensor]
    finish: Callable[[], None]


class CacheForm(Protocol):
    """What plans of one form do with caches."""

    def use(self, role: str, cache: DeviceCache, tokens: int, prefix: Prefix | None = None) -> CacheUse:
        """For a run of so many new tokens per row of `cache`; without a prefix they are the first."""


class InPlace:
    """Every cache is input and output at one address."""

    def use(self, role: str, cache: DeviceCache, tokens: int, prefix: Prefix | None = None) -> CacheUse:
        tensors: dict[str, Tensor] = {}
        for one in _passes(role, cache):
            tensors |= one.at(one.past) | one.at(one.present)
        return CacheUse({} if prefix is None else prefix._asdict(), tensors, lambda: None)


class NewRows:
    """Caches are inputs; new keys and values come out in a block, from which every row is copied into the cache.

    There is one block: runs follow one another on the stream, each behind the copies of the one before it.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._block = GrowingMemory(device, "new keys and values")

    def use(self, role: str, cache: DeviceCache, tokens: int, prefix: Prefix | None = None) -> CacheUse:
        new = self._laid_out(_passes(role, cache), cache, tokens)
        tensors: dict[str, Tensor] = {}
        for one, planes in new:
            tensors |= {name: planes.tensor(number) for number, name in enumerate(one.present)}
        if prefix is None:
            rows = cache.first_pass[0].shape[0]
            return CacheUse({}, tensors, lambda: self._put(new, cache, [0] * rows))
        for one, _ in new:
            tensors |= one.at(one.past)
        lengths = prefix.write_index.tolist()
        return CacheUse({"attention_mask": _mask_of(prefix)}, tensors, lambda: self._put(new, cache, lengths))

    def _laid_out(self, passes: list[_Pass], cache: DeviceCache, tokens: int) -> list[tuple[_Pass, _Planes]]:
        """Where a run gives its new rows: one pass behind the other."""
        rows, heads, _, width = cache.first_pass[0].shape
        planes = _Planes(0, (rows, heads, tokens, width), tokens * cache.token_bytes)
        nbytes = planes.nbytes * len(cache.first_pass)
        begin = self._block.address(nbytes * len(passes))
        return [(one, planes._replace(begin=begin + number * nbytes)) for number, one in enumerate(passes)]

    def _put(self, new: list[tuple[_Pass, _Planes]], cache: DeviceCache, lengths: list[int]) -> None:
        """Copy new rows behind what the rows of the cache hold."""
        for one, planes in new:
            tokens = planes.shape[2]
            for row, length in enumerate(lengths):
                there = cache.positions(one.buffers, row, length, length + tokens)
                self._device.copy_box(there, planes.row(row, len(one.buffers)))


class _Planes(NamedTuple):
    """New rows of a pass in the block: keys or values of a layer are a plane, a row's head in it is a line.

    begin: an address. shape: (rows, heads, tokens, head width), of a plane. line: bytes
    """

    begin: int
    shape: tuple[int, int, int, int]
    line: int

    @property
    def lines(self) -> int:
        """Of a plane; some at its end are empty where the next would not begin at an address for TensorRT."""
        rows, heads, _, _ = self.shape
        step = ADDRESS_ALIGNMENT // math.gcd(self.line, ADDRESS_ALIGNMENT)
        return math.ceil(rows * heads / step) * step

    @property
    def nbytes(self) -> int:
        """Of a plane."""
        return self.lines * self.line

    def tensor(self, number: int) -> Tensor:
        """A plane."""
        return Tensor(self.begin + number * self.nbytes, self.shape)

    def row(self, row: int, planes: int) -> Box:
        """A row in the first so many planes."""
        heads = self.shape[1]
        return Box(self.begin + row * heads * self.line, self.line, heads, planes, pitch=self.line, lines=self.lines)


class _Pass(NamedTuple):
    """What graphs call the keys and values of a pass, and where the cache has them."""

    past: list[str]
    present: list[str]
    buffers: list[DeviceBuffer]

    def at(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Where the cache has what the names stand for."""
        return {name: Tensor(*buffer) for name, buffer in zip(names, self.buffers, strict=True)}


def _passes(role: str, cache: DeviceCache) -> list[_Pass]:
    """The passes that a role takes and gives keys and values of."""
    passes = [(PAST, PRESENT, cache.first_pass)]
    if role in _TWO_PASSES:
        passes.append((PAST_SECOND_PASS, PRESENT_SECOND_PASS, cache.second_pass))
    return [
        _Pass(cache_names(past, len(buffers) // 2), cache_names(present, len(buffers) // 2), buffers)
        for past, present, buffers in passes
    ]


def _mask_of(prefix: Prefix) -> NDArray[np.bool_]:
    """Of the tokens before a run, those that its first new token, and so all of them, attend to: (rows, 1, 1, L)."""
    positions = np.arange(prefix.attention_mask.shape[-1])
    return prefix.attention_mask[:, :, :1] & (positions < prefix.write_index[:, None, None, None])
