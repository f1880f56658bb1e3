"""RoPE tables against the definition written out in float64, one position and one frequency at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_engine import SMALL_MODEL
from trol_runtime.model_config import Decoder, Rope
from trol_runtime.rope import rope_rows, table_scale, uses_long_factors

SHORT, LONG = (1.0, 1.25), (2.0, 40.0)
SU = Rope(theta=1e4, kind="su", short_factor=SHORT, long_factor=LONG, original_max_positions=4096, max_positions=131072)
YARN = replace(SU, kind="yarn")
PLAIN = Rope(theta=1e6)
KINDS = pytest.mark.parametrize("rope", [PLAIN, SU, YARN], ids=["default", "su", "yarn"])


def decoder_with(rope: Rope) -> Decoder:
    """Four channels a head, so two frequencies."""
    return replace(SMALL_MODEL.decoder, hidden_size=32, heads=8, rope=rope)


def by_definition(rope: Rope, position: int, length: int) -> tuple[list[float], list[float]]:
    """SEMANTICS of the official code in float64: cos and sin of position / (factor theta^(2i/d)), times the scale."""
    head_dim = 4
    factors = [1.0] * (head_dim // 2)
    scale = 1.0
    if rope.kind != "default":
        factors = list(rope.long_factor if length > rope.original_max_positions else rope.short_factor)
        stretch = rope.max_positions / rope.original_max_positions
        if rope.kind == "su":
            scale = math.sqrt(1 + math.log(stretch) / math.log(rope.original_max_positions))
        else:
            scale = 0.1 * math.log(stretch) + 1
    angles = [position / (factor * rope.theta ** (2 * i / head_dim)) for i, factor in enumerate(factors)]
    return [scale * math.cos(angle) for angle in angles], [scale * math.sin(angle) for angle in angles]


@KINDS
@given(position=st.integers(0, 131071), beyond=st.integers(0, 5000))
def test_rows_are_those_of_the_definition(rope: Rope, position: int, beyond: int) -> None:
    length = position + 1 + beyond
    cos, sin = rope_rows(decoder_with(rope), np.array([position]), length)
    expected_cos, expected_sin = by_definition(rope, position, length)
    # The angle is rounded to fp32, as officially: half a unit in its last place, and a few for the frequency.
    tolerance = 4 * 2.0**-24 * max(position, 1) + 1e-6
    np.testing.assert_allclose(cos[0], expected_cos, atol=tolerance, rtol=0)
    np.testing.assert_allclose(sin[0], expected_sin, atol=tolerance, rtol=0)


@KINDS
def test_the_fp32_roundings_are_the_official_ones(rope: Rope) -> None:
    """Frequency and angle are rounded to fp32 before the cosine: at position 131071 that shows in the third digit."""
    position, length = 131071, 131072
    factors = np.array({"default": (1, 1)}.get(rope.kind, LONG), np.float32)
    exponents = np.array([0, 2], np.float32) / np.float32(4)
    frequencies = np.float32(1) / (factors * np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32))
    angles = np.float32(position) * frequencies
    assert angles.dtype == np.float32
    cos, sin = rope_rows(decoder_with(rope), np.array([position]), length)
    scale = np.float32(table_scale(rope))
    np.testing.assert_allclose(cos[0], np.cos(angles.astype(np.float64)) * scale, rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin[0], np.sin(angles.astype(np.float64)) * scale, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("length", "factors"), [(4095, SHORT), (4096, SHORT), (4097, LONG)])
def test_the_long_factors_begin_behind_the_original_length(length: int, factors: tuple[float, ...]) -> None:
    """All positions of a call take the same factors: those of its last one."""
    assert uses_long_factors(SU, length) == (factors == LONG)
    cos, _ = rope_rows(decoder_with(SU), np.array([1]), length)
    expected = [math.cos(1 / (factor * 1e4 ** (i / 2))) * 1.19024 for i, factor in enumerate(factors)]
    np.testing.assert_allclose(cos[0], expected, rtol=1e-5)


def test_plain_tables_do_not_depend_on_the_length() -> None:
    assert not uses_long_factors(PLAIN, 10**6)
    short, long = (rope_rows(decoder_with(PLAIN), np.arange(5), length)[0] for length in (5, 10**6))
    np.testing.assert_array_equal(short, long)


def test_the_scale_is_one_for_plain_and_for_unstretched_models() -> None:
    assert table_scale(PLAIN) == 1
    assert table_scale(replace(SU, max_positions=4096)) == 1
    assert table_scale(SU) == pytest.approx(1.19024, abs=1e-5)
    assert table_scale(YARN) == pytest.approx(0.1 * math.log(32) + 1)


@pytest.mark.parametrize("shape", [(), (1,), (1, 7), (3, 1)])
def test_a_row_per_position_half_a_head_wide(shape: tuple[int, ...]) -> None:
    for table in rope_rows(decoder_with(SU), np.zeros(shape, np.int64), 1):
        assert (table.shape, table.dtype) == ((*shape, 2), np.float32)
