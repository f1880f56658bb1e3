"""Places: boxes apart, overlap in radii of the smaller, and the first draw that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hand_made_scenes import objects
from trol_benchmarks.world.placing import MARGIN, are_apart, first_fitting, is_free, overlap, thing_box

LEFT, RIGHT = objects("red star", "blue circle", at=[(0.3, 0.5), (0.7, 0.5)]).things


def test_boxes_are_apart_with_a_margin_between_them_on_either_axis() -> None:
    box = (0.1, 0.1, 0.2, 0.2)
    assert are_apart(box, (0.2 + MARGIN, 0.1, 0.4, 0.2))
    assert are_apart((0.1, 0.2 + MARGIN, 0.2, 0.4), box)
    assert not are_apart(box, (0.2 + MARGIN / 2, 0.1, 0.4, 0.2))


def test_a_box_is_free_where_it_is_apart_from_all() -> None:
    taken = [thing_box(LEFT), thing_box(RIGHT)]
    assert is_free((0.45, 0.45, 0.55, 0.55), taken)
    assert not is_free((0.45, 0.45, 0.65, 0.55), taken)
    assert is_free((0, 0, 1, 1), [])


def test_overlap_is_measured_in_radii_of_the_smaller() -> None:
    assert overlap(LEFT, RIGHT) < 0
    assert overlap(LEFT, LEFT) == pytest.approx(2)  # all of its diameter
    touching = replace(RIGHT, x=LEFT.x + (LEFT.size + RIGHT.size) / 2)
    assert overlap(LEFT, touching) == pytest.approx(0)


def test_the_first_draw_that_fits_is_taken_and_nothing_is_drawn_behind_it() -> None:
    draws = iter(range(10))
    assert first_fitting(lambda: next(draws), lambda drawn: drawn >= 2, tries=5) == 2
    assert next(draws) == 3
    assert first_fitting(lambda: next(draws), lambda drawn: drawn > 100, tries=4) is None
    assert next(draws) == 8
