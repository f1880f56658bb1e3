"""Scenes as data: what the drawn world does not have, and what has no size, is refused when it is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hand_made_scenes import LOOK, chart, objects, printed
from trol_benchmarks.world.scene import Chart, Texture
from trol_runtime.errors import UsageError

(THING,) = objects("red star").things
(PRINT,) = printed("CAT").prints
BAR_CHART = chart(red=0.5).chart


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: replace(THING, shape="hexagon"),
            "there is no shape 'hexagon' in the drawn world; "
            "known are circle, square, triangle, star, cross, ring, heart, moon",
        ),
        (
            lambda: replace(PRINT, colour="pink"),
            "there is no colour 'pink' in the drawn world; "
            "known are red, orange, yellow, green, blue, purple, black, white",
        ),
        (
            lambda: Texture("marble", period=0.1, depth=5),
            "there is no texture 'marble' in the drawn world; known are stripes, dots, speckle",
        ),
        (
            lambda: replace(PRINT, font="wingdings"),
            "there is no font 'wingdings' in the drawn world; known are dejavu-sans, dejavu-sans-bold, "
            "dejavu-sans-mono, dejavu-serif, dejavu-serif-bold, stix, stix-bold, computer-modern-sans, "
            "computer-modern-bold",
        ),
    ],
    ids=["shape", "colour", "texture", "font"],
)
def test_what_the_world_does_not_have_is_refused_and_the_known_are_listed(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(THING, size=-1.0), "the size of a thing is -1, expected more than 0"),
        (lambda: replace(PRINT, height=0.0), "the height of a print is 0, expected more than 0"),
        (lambda: chart(red=float("nan")), "the height of a bar is nan, expected more than 0"),
        (lambda: Texture("dots", period=0.0, depth=5), "the period of a texture is 0, expected more than 0"),
        (lambda: replace(LOOK, side=0), "the side of a picture is 0, expected more than 0"),
        (lambda: Chart((), (0, 0, 1, 1), (0, 0, 0)), "a chart has no bars, expected one or more"),
    ],
    ids=["thing", "print", "bar", "texture", "picture", "chart"],
)
def test_what_has_no_size_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value) == message


def test_a_thing_is_called_by_colour_and_shape_and_a_print_of_digits_is_a_number() -> None:
    assert THING.name == "red star"
    assert not PRINT.is_number
    assert replace(PRINT, text="042").is_number
