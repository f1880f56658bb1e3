"""Rotary position tables: the cos and sin rows of given positions, as the official code computes them in fp32.

Rows are graph inputs, so the choice between Phi-3's short and long factors is made here, per row of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trol_runtime.model_config import Decoder, Rope


def rope_rows(decoder: Decoder, positions: NDArray[np.int64], length: int) -> tuple[NDArray, NDArray]:
    """cos and sin of `positions`, each float32 (..., head_dim / 2).

    positions: int64 (...), counted from 0 without padding
    length: tokens known to this row in this call, highest position + 1; decides short or long factors ("su", "yarn")

    The order of float32 roundings is the official one (inverse frequency, then angle); pow and cos are taken in
    float64, within one unit in the last place of any correctly rounding fp32 library.
    """
    rope = decoder.rope
    angles = np.asarray(positions, np.float32)[..., None] * _inverse_frequencies(rope, decoder.head_dim, length)
    scale = np.float32(table_scale(rope))
    angles = angles.astype(np.float64)
    return np.cos(angles).astype(np.float32) * scale, np.sin(angles).astype(np.float32) * scale


def table_scale(rope: Rope) -> float:
    """The factor on both tables: 1 but for "su" and "yarn" models stretched beyond their original length."""
    if rope.kind == "default":
        return 1.0
    stretch = rope.max_positions / rope.original_max_positions
    if stretch <= 1.0:
        return 1.0
    if rope.kind == "su":
        return math.sqrt(1 + math.log(stretch) / math.log(rope.original_max_positions))
    return 0.1 * math.log(stretch) + 1.0


def uses_long_factors(rope: Rope, length: int) -> bool:
    """Whether a row of `length` known tokens takes the long factors; the switch is made anew in every call."""
    return rope.kind != "default" and length > rope.original_max_positions


def _inverse_frequencies(rope: Rope, head_dim: int, length: int) -> NDArray[np.float32]:
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency_base = np.power(np.float64(rope.theta), exponent.astype(np.float64)).astype(np.float32)
    if rope.kind != "default":
        factors: Sequence[float] = rope.long_factor if uses_long_factors(rope, length) else rope.short_factor
        frequency_base = np.asarray(factors, np.float32) * frequency_base
    return np.float32(1) / frequency_base
