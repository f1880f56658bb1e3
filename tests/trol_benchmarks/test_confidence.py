"""Intervals and p-values against published values and against what they are defined to be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trol_benchmarks.confidence import mcnemar_p_value, wilson_interval

ROUNDING = 1e-12  # of a few operations on floats of 1 or less


@pytest.mark.parametrize(
    ("correct", "n", "interval"),
    [
        (8, 10, (0.4902, 0.9433)),
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilsons_interval_is_the_published_one(correct: int, n: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(correct, n) == pytest.approx(interval, abs=5e-5)  # four places are published


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_lies_in_0_to_1_around_the_share_and_mirrors_for_wrong_ones(counts: tuple[int, int]) -> None:
    correct, n = counts
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n + ROUNDING
    assert correct / n - ROUNDING <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(n - correct, n), abs=ROUNDING)


@given(st.integers(2, 500).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n))))
def test_the_ends_of_wilsons_interval_are_where_the_share_is_1_96_deviations_away(counts: tuple[int, int]) -> None:
    correct, n = counts
    for end in wilson_interval(correct, n):
        assert abs(correct / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)


def test_an_interval_at_a_higher_level_is_wider() -> None:
    low, high = wilson_interval(8, 10, level=0.99)
    assert low < wilson_interval(8, 10)[0]
    assert high > wilson_interval(8, 10)[1]


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (5, 15, 0.041389),  # 2 * 21700 / 2**20
        (1, 9, 0.021484),  # 2 * 11 / 2**10
        (0, 6, 0.03125),
        (0, 5, 0.0625),
        (10, 10, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemars_exact_p_value_is_twice_the_binomial_tail(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(p_value, rel=1e-4)
    assert mcnemar_p_value(only_second, only_first) == mcnemar_p_value(only_first, only_second)


def test_a_thousand_questions_of_difference_still_have_a_p_value() -> None:
    assert 0 < mcnemar_p_value(0, 1000) < 1e-300
