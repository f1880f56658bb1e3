"""How sure a count of right answers is: an interval for one engine, a p-value for two on the same questions."""

from __future__ import annotations

import math
from statistics import NormalDist

LEVEL = 0.95


def wilson_interval(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The score interval of Wilson (1927) for the probability of a right answer, after `correct` of `n` >= 1.

    Unlike the textbook's plus-or-minus it stays inside 0 to 1 and means something for 0 and for `n` right answers.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = correct + z**2 / 2
    half = z * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    return max(0.0, (centre - half) / (n + z**2)), min(1.0, (centre + half) / (n + z**2))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """How probable so uneven a split is if two engines are equally good: McNemar's test, exact and two-sided.

    only_first, only_second: questions that one of them alone got right; all others say nothing about a difference
    """
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)
