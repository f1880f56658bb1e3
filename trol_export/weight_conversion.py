"""Stored floats to fp32 or fp16, chunk by chunk, refusing NaN, infinity and what fp16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from trol_export.weight_files import TensorInfo
from trol_runtime.errors import CheckpointError, NumericError

FloatType = Literal["F32", "F16"]

# Bits of +infinity: every NaN and infinity has these exponent bits set.
_INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_WORD: dict[str, np.dtype] = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}

FLOAT_TYPES = tuple(_INFINITY)


def convert(chunks: Iterable[np.ndarray], info: TensorInfo, dtype: FloatType, where: str) -> Iterator[memoryview]:
    """Turn one tensor's stored bytes (F32, F16 or BF16) into little-endian `dtype` bytes, rounding to nearest even.

    chunks: uint8 (n,), each a whole number of elements
    where:  the file's name, for messages
    Raises CheckpointError for other stored dtypes, NumericError naming the tensor and the first bad element.
    """
    if info.dtype not in FLOAT_TYPES:
        raise CheckpointError(f"{where}: tensor '{info.name}' is {info.dtype}, expected F32, F16 or BF16")
    done = 0
    for chunk in chunks:
        words = chunk.view(_WORD[info.dtype])
        result = words if info.dtype == dtype else _cast(words, info.dtype, dtype)
        if _has_nonfinite(result, dtype):
            raise _first_bad(words, info, dtype, done, where)
        done += words.size
        yield result.view(np.uint8).data


def _has_nonfinite(words: np.ndarray, dtype: str) -> bool:
    """Whether any float in these words is NaN or infinite, from two integer maxima.

    As unsigned words negative NaN and -infinity are largest, as signed words the positive ones. Nothing is allocated:
    ten times faster than `np.isfinite` on fp16, for which numpy has no vector code.
    """
    if not words.size:
        return False
    infinity = _INFINITY[dtype]
    sign = 1 << (8 * words.itemsize - 1)
    return int(words.max()) >= infinity | sign or int(words.view(f"<i{words.itemsize}").max()) >= infinity


def _cast(words: np.ndarray, stored: str, wanted: str) -> np.ndarray:
    """Bits of `stored` floats to bits of `wanted` floats; torch's casts are vectorised, numpy's fp16 casts are not."""
    import torch

    torch_type = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    signed = {2: torch.int16, 4: torch.int32}
    floats = torch.from_numpy(words.view(f"<i{words.itemsize}")).view(torch_type[stored])
    converted = floats.to(torch_type[wanted])
    return converted.view(signed[converted.element_size()]).numpy().view(_WORD[wanted])


def _first_bad(words: np.ndarray, info: TensorInfo, dtype: FloatType, done: int, where: str) -> NumericError:
    """The error for a chunk that starts at element `done` and holds a value that is not finite in `dtype`."""
    values = _cast(words, info.dtype, "F32").view("<f4")
    # 65520 is the first number that rounds to infinity in fp16.
    good = np.isfinite(values) if dtype == "F32" else np.abs(values) < 65520
    position = int(np.argmin(good))
    index = [int(i) for i in np.unravel_index(done + position, info.shape)]
    value = values[position]
    if np.isfinite(value):
        return NumericError(
            f"{where}: tensor '{info.name}' holds {value:g} at {index}, beyond fp16's 65504: "
            "export with --precision fp32"
        )
    return NumericError(
        f"{where}: tensor '{info.name}' holds {value} at {index}, expected finite weights: the checkpoint is broken"
    )
