"""Repeated measurements: sides take turns, and what is reported is the median with the spread beside it.

Turns, because a machine's speed drifts (other work, clock rate): a ratio is only worth something when both of its sides
saw the same drift.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from trol_runtime.errors import UsageError


def summary(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Median, extremes and all values, in the order they were taken."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def require_rounds(rounds: int) -> None:
    """Raise UsageError for a number of rounds that measures nothing."""
    if rounds < 1:
        raise UsageError(f"--rounds is {rounds}, expected 1 or more")


def turns(sides: Sequence[str], rounds: int) -> Iterator[str]:
    """Each side once per round; every second round runs backwards, so that neither side always follows the other.

    >>> list(turns("ab", 3))
    ['a', 'b', 'b', 'a', 'a', 'b']
    """
    for round_number in range(rounds):
        yield from sides if round_number % 2 == 0 else reversed(sides)


def ratio(values: Sequence[float], to: Sequence[float]) -> dict[str, float | list[float]]:
    """Medians of the two sides divided, and the ratio of every round, whose spread says what the first is worth."""
    return {
        "of_medians": statistics.median(values) / statistics.median(to),
        "per_round": [a / b for a, b in zip(values, to, strict=True)],
    }
