"""What stands out: far enough in colour from all of a gradient, and for print in brightness, too."""

from __future__ import annotations

import pytest

from trol_benchmarks.world.contrast import brightness, colours_of_prints, colours_of_things, distance
from trol_benchmarks.world.scene import COLOURS

WHITE, GREY, BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)


def test_distance_is_to_the_nearest_colour_of_the_gradient() -> None:
    assert distance(WHITE, (WHITE, BLACK)) == 0
    assert distance(GREY, (WHITE, BLACK)) == pytest.approx(0)  # in its middle
    assert distance((255, 0, 0), (BLACK, BLACK)) == 255
    assert distance((0, 0, 100), ((0, 30, 0), (50, 30, 0))) == pytest.approx((100**2 + 30**2) ** 0.5)


def test_green_is_brighter_than_red_and_red_than_blue() -> None:
    assert brightness((0, 255, 0)) > brightness((255, 0, 0)) > brightness((0, 0, 255))
    assert brightness(WHITE) == pytest.approx(255)


def test_every_colour_but_white_stands_out_from_white() -> None:
    assert colours_of_things((WHITE, WHITE)) == [name for name in COLOURS if name != "white"]


def test_yellow_is_a_thing_on_white_and_no_print() -> None:
    assert "yellow" in colours_of_things((WHITE, WHITE))
    assert "yellow" not in colours_of_prints((WHITE, WHITE))
    assert "yellow" in colours_of_prints((BLACK, BLACK))


def test_on_a_gradient_through_its_brightness_nothing_can_be_read() -> None:
    assert colours_of_prints((WHITE, BLACK)) == []
