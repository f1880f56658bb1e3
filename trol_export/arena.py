"""The arena: all weights in one valid safetensors file whose every tensor starts at a multiple of 256 bytes.

safetensors allows no holes between tensors, so explicit `__pad.N` tensors of bytes fill them. The header is known from
names, dtypes and shapes alone; the data is then streamed, a chunk of a tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trol_export.weight_files import TensorInfo
from trol_runtime.errors import TrolError

TENSOR_ALIGNMENT = 256
# Header and 8-byte length together: with the entry's own alignment this makes data byte 0 easy to place on a page.
HEADER_ALIGNMENT = 4096
PAD_PREFIX = "__pad."


@dataclass(frozen=True)
class ArenaLayout:
    """Where every tensor goes.

    header: the first bytes of the file, 8-byte length and JSON, padded with spaces to a multiple of 4096.
    offsets: bytes from data byte 0 (the one after the header) to each tensor, in `tensors` order.
    data_bytes: from data byte 0 to the end of the file.
    """

    tensors: tuple[TensorInfo, ...]
    offsets: Mapping[str, int]
    header: bytes
    data_bytes: int


def plan_arena(tensors: Iterable[TensorInfo]) -> ArenaLayout:
    """Lay the tensors out in the given order; names are unique and none starts with `__` (ValueError otherwise)."""
    tensors = tuple(tensors)
    offsets: dict[str, int] = {}
    header: dict[str, Any] = {}
    end = pads = 0
    for tensor in tensors:
        if tensor.name in offsets or tensor.name.startswith("__"):
            raise ValueError(f"tensor name {tensor.name!r} is taken or reserved")
        start = _aligned(end, TENSOR_ALIGNMENT)
        if start > end:
            header[f"{PAD_PREFIX}{pads}"] = {"dtype": "U8", "shape": [start - end], "data_offsets": [end, start]}
            pads += 1
        end = start + tensor.nbytes
        offsets[tensor.name] = start
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    return ArenaLayout(tensors, offsets, _header_bytes(header), data_bytes=end)


def stream_arena(layout: ArenaLayout, source: Callable[[str], Iterator[memoryview]]) -> Iterator[bytes | memoryview]:
    """Yield the arena's `data_bytes` bytes after the header; `source(name)` yields a tensor's bytes in chunks.

    A chunk is passed on as it comes and not kept. Raises TrolError naming a tensor whose length is not the layout's.
    """
    end = 0
    for tensor in layout.tensors:
        start = layout.offsets[tensor.name]
        if start > end:
            yield bytes(start - end)
        received = 0
        for chunk in source(tensor.name):
            received += chunk.nbytes
            if received > tensor.nbytes:
                break
            yield chunk
        if received != tensor.nbytes:
            more = "or more " if received > tensor.nbytes else ""
            raise TrolError(
                f"tensor {tensor.name!r}: {received:,} {more}bytes came, {tensor.dtype} {list(tensor.shape)} needs "
                f"{tensor.nbytes:,}; check the checkpoint with: trol-export --check DIR"
            )
        end = start + tensor.nbytes


def _header_bytes(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    size = _aligned(8 + len(text), HEADER_ALIGNMENT) - 8
    return size.to_bytes(8, "little") + text.ljust(size)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
