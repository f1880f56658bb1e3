"""The weights of an engine file on a device: read once, in bounded windows, verified on the way, shared by plans."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from io import RawIOBase

import numpy as np
from numpy.typing import NDArray

from trol_runtime.bundle import ARENA_BLOCK_BYTES, ARENA_ENTRY, Bundle
from trol_runtime.cuda_device import ADDRESS_ALIGNMENT, CudaDevice, DeviceMemory
from trol_runtime.errors import EngineFileError


class DeviceArena:
    """weights.safetensors as it lies in the file, from its first byte, in one block of device memory.

    A window is one block of the file's hashes, so that every byte is compared with its SHA-256 before it is used. What
    was read is dropped from the page cache: where host and device share their memory, weights would be there twice.
    Raises EngineFileError for a damaged or truncated file, LimitError without memory for it.
    """

    def __init__(self, bundle: Bundle, device: CudaDevice) -> None:
        size, header = bundle.entries[ARENA_ENTRY].size, bundle.arena_header_bytes
        # So that the tensors, and not the header, lie where they should; among themselves they do.
        before = -header % ADDRESS_ALIGNMENT
        self._offsets = {name: tensor.offset for name, tensor in bundle.manifest.tensors.items()}
        self._memory: DeviceMemory = device.allocate(before + size, "weights")
        self._data = self._memory.address + before + header
        position = self._memory.address + before
        for window in _windows(bundle):
            device.upload(position, window)
            device.synchronize()  # the next one is read into the same memory
            position += window.nbytes

    def __contains__(self, name: str) -> bool:
        return name in self._offsets

    def address(self, name: str) -> int:
        """Where a tensor lies; KeyError for one that the engine does not have."""
        return self._data + self._offsets[name]


def _windows(bundle: Bundle) -> Iterator[NDArray[np.uint8]]:
    """The arena's bytes block by block, in one buffer that is filled anew each time."""
    entry = bundle.entries[ARENA_ENTRY]
    buffer = np.empty(min(ARENA_BLOCK_BYTES, entry.size), np.uint8)
    try:
        with bundle.path.open("rb", buffering=0) as file:
            for number, expected in enumerate(bundle.manifest.sha256.arena_blocks):
                begin = entry.offset + number * ARENA_BLOCK_BYTES
                window = buffer[: min(ARENA_BLOCK_BYTES, entry.offset + entry.size - begin)]
                file.seek(begin)
                if not _filled(file, window) or hashlib.sha256(window.data).hexdigest() != expected:
                    raise EngineFileError(
                        f"{bundle.path}: block {number} of {ARENA_ENTRY} is damaged; copy or export the engine again"
                    )
                _drop_from_cache(file.fileno(), begin, window.nbytes)
                yield window
    except OSError as error:
        raise EngineFileError(f"{bundle.path}: cannot be read ({error.strerror}); check the disk") from error


def _filled(file: RawIOBase, window: NDArray[np.uint8]) -> bool:
    """Read until the window is full; False at the end of the file."""
    view = window.data
    while view:
        count = file.readinto(view)
        if not count:
            return False
        view = view[count:]
    return True


def _drop_from_cache(descriptor: int, begin: int, size: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_DONTNEED)
