"""Device memory: allocations of the host, each access checked against them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

POISON = 0xFF  # NaN in every float type, -1 in every integer type, and no truth value
_ALIGNMENT = 256  # of cudaMalloc (CUDA C++ Programming Guide, "Device Memory Accesses")


class Fault(AssertionError):
    """Something that a GPU would not forgive, or worse, would."""


class Memory:
    """All allocations, also those that were freed: their addresses are never used again, and touching them is found.

    total: bytes that there are
    """

    def __init__(self, total: int = 1 << 40) -> None:
        self.total = total
        self._blocks: dict[int, Bytes] = {}
        self._freed: dict[int, Bytes] = {}

    @property
    def in_use(self) -> int:
        return sum(block.nbytes for block in self._blocks.values())

    def allocate(self, nbytes: int) -> int | None:
        """The address of poisoned memory; None when there is not so much."""
        if self.in_use + nbytes > self.total:
            return None
        room = np.full(nbytes + _ALIGNMENT, POISON, np.uint8)
        begin = -room.ctypes.data % _ALIGNMENT
        block = room[begin : begin + nbytes]
        self._blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        if address not in self._blocks:
            raise Fault(
                f"free of {address:#x}, where no allocation begins" if address not in self._freed else "freed twice"
            )
        block = self._freed[address] = self._blocks.pop(address)
        block[:] = POISON

    def view(self, address: int, nbytes: int) -> Bytes:
        """The bytes there; raises Fault unless one allocation holds them all."""
        for kind, blocks in (("", self._blocks), ("freed ", self._freed)):
            for begin, block in blocks.items():
                if begin <= address < begin + block.nbytes:
                    if kind:
                        raise Fault(f"use after free at {address:#x}")
                    if address + nbytes > begin + block.nbytes:
                        raise Fault(f"{nbytes} bytes at {address:#x} end behind their allocation")
                    return block[address - begin : address - begin + nbytes]
        raise Fault(f"{address:#x} is no device memory")
