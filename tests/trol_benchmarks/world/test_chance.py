"""Random choices: inside their bounds, without repetition, and the same for the same generator."""

from __future__ import annotations

import numpy as np

from trol_benchmarks.world.chance import between, one_of, some_of, whole_between


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_numbers_lie_between_their_bounds_and_whole_ones_reach_them() -> None:
    rng = generator()
    assert all(0.25 <= between(rng, 0.25, 0.5) < 0.5 for _ in range(100))
    assert {whole_between(rng, 2, 4) for _ in range(100)} == {2, 3, 4}


def test_one_is_one_of_them() -> None:
    rng = generator()
    assert {one_of(rng, "abc") for _ in range(100)} == set("abc")


def test_some_are_different_ones_and_all_where_there_are_too_few() -> None:
    rng = generator()
    assert all(len(set(some_of(rng, "abcd", 3))) == 3 for _ in range(20))
    assert sorted(some_of(rng, "abcd", 9)) == list("abcd")
    assert list(some_of(rng, "abcd", 0)) == []


def test_equal_generators_choose_the_same() -> None:
    assert some_of(generator(), "abcdefgh", 5) == some_of(generator(), "abcdefgh", 5)
