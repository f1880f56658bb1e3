"""Finds places for what a scene shows: inside the picture, print apart from all else, things with little overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from trol_benchmarks.world.chance import between, one_of, whole_between
from trol_benchmarks.world.contrast import Background, print_stands_out, thing_stands_out
from trol_benchmarks.world.fonts import extent
from trol_benchmarks.world.looks import draw_axes, draw_shade
from trol_benchmarks.world.scene import FONTS, Bar, Chart, Print, Thing
from trol_benchmarks.world.splits import ColouredText, Pair

SMALLEST_THING, LARGEST_THING = 0.16, 0.32
LOWEST_PRINT, HIGHEST_PRINT = 0.16, 0.22  # heights of capitals
MOST_OVERLAP = 0.1  # of the circles around two things, in radii of the smaller
THING_TURN, PRINT_TURN = 20.0, 10.0  # degrees to either side
LOWEST_BAR, TALLEST_BAR_LEAD = 0.15, 0.1
# Between anything and the border, and between print and what is next to it: small fonts are rounded to pixels, by which
# ink reaches up to 0.016 out of the box that is measured in large.
MARGIN = 0.02

_LARGEST_OF = (LARGEST_THING, LARGEST_THING, LARGEST_THING, 0.30, 0.28, 0.26, 0.24)  # by number of things
_TRIES = 40  # places for one thing or print; where none is free, all are placed anew in smaller sizes
_SHRINKAGE = 0.8
FONT_NAMES = tuple(FONTS)

_Placed = TypeVar("_Placed")

Box = tuple[float, float, float, float]  # left, top, right, bottom


def place(
    rng: np.random.Generator, pairs: Sequence[Pair], texts: Sequence[ColouredText], background: Background
) -> tuple[tuple[Thing, ...], tuple[Print, ...]]:
    """Things and prints of these names, at most 6 and 2."""
    room = 1.0  # how much of the range of sizes is drawn from
    while True:
        prints = _place_prints(rng, texts, background, room)
        if prints is not None:
            things = _place_things(rng, pairs, background, [print_box(printed) for printed in prints], room)
            if things is not None:
                return tuple(things), tuple(prints)
        room *= _SHRINKAGE


def place_bars(rng: np.random.Generator, colours: Sequence[str], background: Background) -> Chart:
    """A chart with bars of these colours, in a box somewhere in the picture."""
    width, height = between(rng, 0.6, 0.9), between(rng, 0.5, 0.9)
    left, top = between(rng, 0.04, 0.96 - width), between(rng, 0.04, 0.96 - height)
    tallest = between(rng, 0.5, 1.0)
    heights = [between(rng, LOWEST_BAR, tallest - TALLEST_BAR_LEAD) for _ in colours]
    heights[whole_between(rng, 0, len(heights) - 1)] = tallest
    suits = partial(thing_stands_out, background=background)
    bars = tuple(Bar(c, draw_shade(rng, c, suits), bar_height) for c, bar_height in zip(colours, heights, strict=True))
    return Chart(bars, (left, top, left + width, top + height), draw_axes(rng, background))


def print_box(printed: Print) -> Box:
    """The box around a print as it stands in the picture."""
    width, height = _turned_extent(printed.font, printed.text, printed.angle)
    return _box_around(printed.x, printed.y, printed.height * width, printed.height * height)


def thing_box(thing: Thing) -> Box:
    """The box around the circle around a thing."""
    return _box_around(thing.x, thing.y, thing.size, thing.size)


def are_apart(one: Box, other: Box) -> bool:
    """Whether at least MARGIN lies between two boxes."""
    return (
        one[2] + MARGIN <= other[0]
        or other[2] + MARGIN <= one[0]
        or one[3] + MARGIN <= other[1]
        or other[3] + MARGIN <= one[1]
    )


def is_free(box: Box, taken: Iterable[Box]) -> bool:
    """Whether a box lies apart from all that are taken."""
    return all(are_apart(box, other) for other in taken)


def overlap(one: Thing, other: Thing) -> float:
    """Of the circles around two things, in radii of the smaller; negative where they lie apart."""
    reach = (one.size + other.size) / 2
    return (reach - math.hypot(one.x - other.x, one.y - other.y)) / (min(one.size, other.size) / 2)


def first_fitting(draw: Callable[[], _Placed], fits: Callable[[_Placed], bool], tries: int) -> _Placed | None:
    """The first of so many draws that fits, and nothing is drawn behind it; None where none does."""
    return next((drawn for drawn in (draw() for _ in range(tries)) if fits(drawn)), None)


def _place_prints(
    rng: np.random.Generator, texts: Sequence[ColouredText], background: Background, room: float
) -> list[Print] | None:
    """None where no place was found."""
    prints: list[Print] = []
    for text in texts:
        printed = _place_print(rng, text, background, [print_box(other) for other in prints], room)
        if printed is None:
            return None
        prints.append(printed)
    return prints


def _place_print(
    rng: np.random.Generator, coloured_text: ColouredText, background: Background, taken: Sequence[Box], room: float
) -> Print | None:
    colour, text = coloured_text
    font, angle = one_of(rng, FONT_NAMES), between(rng, -PRINT_TURN, PRINT_TURN)
    width, height = _turned_extent(font, text, angle)
    largest = min(HIGHEST_PRINT, (1 - 2 * MARGIN) / max(width, height))
    size = between(rng, LOWEST_PRINT, LOWEST_PRINT + room * (largest - LOWEST_PRINT))
    rgb = draw_shade(rng, colour, partial(print_stands_out, background=background))

    def draw() -> Print:
        return Print(text, colour, rgb, font, centre(rng, size * width), centre(rng, size * height), size, angle)

    return first_fitting(draw, lambda printed: is_free(print_box(printed), taken), _TRIES)


def _place_things(
    rng: np.random.Generator, pairs: Sequence[Pair], background: Background, taken: Sequence[Box], room: float
) -> list[Thing] | None:
    """None where no place was found."""
    largest = SMALLEST_THING + room * (_LARGEST_OF[len(pairs)] - SMALLEST_THING)
    things: list[Thing] = []
    for pair in pairs:
        thing = _place_thing(rng, pair, background, taken, things, largest)
        if thing is None:
            return None
        things.append(thing)
    return things


def _place_thing(
    rng: np.random.Generator,
    pair: Pair,
    background: Background,
    taken: Sequence[Box],
    things: Sequence[Thing],
    largest: float,
) -> Thing | None:
    colour, shape = pair
    rgb = draw_shade(rng, colour, partial(thing_stands_out, background=background))
    angle, size = between(rng, -THING_TURN, THING_TURN), between(rng, SMALLEST_THING, largest)

    def draw() -> Thing:
        return Thing(shape, colour, rgb, centre(rng, size), centre(rng, size), size, angle)

    def fits(thing: Thing) -> bool:
        return is_free(thing_box(thing), taken) and all(overlap(thing, other) <= MOST_OVERLAP for other in things)

    return first_fitting(draw, fits, _TRIES)


def _turned_extent(font: str, text: str, angle: float) -> tuple[float, float]:
    """Width and height of the box around turned text, in heights of a capital."""
    width, height = extent(font, text)
    cosine, sine = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    return width * cosine + height * sine, height * cosine + width * sine


def _box_around(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def centre(rng: np.random.Generator, length: float) -> float:
    """Where the middle of something that long may lie."""
    return between(rng, MARGIN + length / 2, 1 - MARGIN - length / 2)
