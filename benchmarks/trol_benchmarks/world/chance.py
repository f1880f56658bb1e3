"""Draws from a generator, scalar by scalar: `Generator.choice` and `integers` take ten times as long for one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def one_of(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """One of `choices`, all equally likely."""
    return choices[int(rng.random() * len(choices))]


def some_of(rng: np.random.Generator, choices: Sequence[_T], count: int) -> list[_T]:
    """`count` different ones of `choices`, or all where there are fewer, in random order."""
    left = list(choices)
    return [left.pop(int(rng.random() * len(left))) for _ in range(min(count, len(left)))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform over low..high."""
    return low + (high - low) * rng.random()


def whole_between(rng: np.random.Generator, low: int, high: int) -> int:
    """Uniform over the whole numbers low..high, both included."""
    return low + int(rng.random() * (high - low + 1))
