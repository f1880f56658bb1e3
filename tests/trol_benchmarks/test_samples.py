from __future__ import annotations

import pytest

from trol_benchmarks.samples import ratio, require_rounds, summary, turns
from trol_runtime.errors import UsageError


def test_every_round_has_every_side_once_and_neither_always_goes_first() -> None:
    assert list(turns(("engine", "baseline"), 3)) == [
        *("engine", "baseline"),
        *("baseline", "engine"),
        *("engine", "baseline"),
    ]


def test_a_summary_keeps_the_values_in_their_order() -> None:
    assert summary([3.0, 1.0, 10.0]) == {"median": 3.0, "min": 1.0, "max": 10.0, "values": [3.0, 1.0, 10.0]}


def test_a_ratio_is_of_medians_and_the_rounds_show_its_spread() -> None:
    assert ratio([2.0, 4.0, 100.0], [4.0, 8.0, 4.0]) == {"of_medians": 1.0, "per_round": [0.5, 0.5, 25.0]}


def test_no_rounds_measure_nothing() -> None:
    require_rounds(1)
    with pytest.raises(UsageError, match=r"^--rounds is 0, expected 1 or more$"):
        require_rounds(0)
