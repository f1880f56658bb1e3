"""Scenes with as much in them as there is room for: a tower sees many more letters in the same time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from string import ascii_uppercase, digits

import numpy as np

from trol_benchmarks.world.chance import between, one_of, some_of, whole_between
from trol_benchmarks.world.contrast import (
    Background,
    colours_of_prints,
    colours_of_things,
    print_stands_out,
    thing_stands_out,
)
from trol_benchmarks.world.fonts import extent
from trol_benchmarks.world.looks import draw_background, draw_look, draw_shade
from trol_benchmarks.world.placing import (
    FONT_NAMES,
    LARGEST_THING,
    MARGIN,
    PRINT_TURN,
    SMALLEST_THING,
    THING_TURN,
    Box,
    centre,
    first_fitting,
    is_free,
    print_box,
    thing_box,
)
from trol_benchmarks.world.scene import Print, Scene, Thing
from trol_benchmarks.world.splits import PAIRS, Pair, belongs, is_unseen_text, pair_split

_PRINTS = 20  # that are tried to be placed
_LOWEST_PRINT, _HIGHEST_PRINT = 0.14, 0.20  # lower than in the world's own scenes: more of them fit
_MOST_THINGS = 4
_TRIES = 8  # places for each
_TRAINED_PAIRS = tuple(pair for pair in PAIRS if pair_split(*pair) is None)


def crowded_scene(rng: np.random.Generator) -> Scene:
    """A scene of the train split with up to 4 things and many texts of random letters or digits."""
    while True:
        scene = _crowded_scene(rng)
        if belongs(scene, "train"):
            return scene


def _crowded_scene(rng: np.random.Generator) -> Scene:
    """It shows no pair, word or number that is kept for another split."""
    background = draw_background(rng)
    look = draw_look(rng, background)
    taken: list[Box] = []
    things: list[Thing] = []
    prints: list[Print] = []
    stand_out = colours_of_things(background)
    pairs = [pair for pair in _TRAINED_PAIRS if pair[0] in stand_out]
    colours = colours_of_prints(background)
    for pair in some_of(rng, pairs, whole_between(rng, 0, _MOST_THINGS)):
        thing = _place_thing(rng, pair, background, taken)
        if thing is not None:
            taken.append(thing_box(thing))
            things.append(thing)
    for _ in range(_PRINTS):
        printed = _place_print(rng, colours, background, taken)
        if printed is not None:
            taken.append(print_box(printed))
            prints.append(printed)
    return Scene(look, tuple(things), tuple(prints))


def _place_thing(rng: np.random.Generator, pair: Pair, background: Background, taken: Sequence[Box]) -> Thing | None:
    colour, shape = pair
    rgb = draw_shade(rng, colour, partial(thing_stands_out, background=background))
    size, angle = between(rng, SMALLEST_THING, LARGEST_THING), between(rng, -THING_TURN, THING_TURN)

    def draw() -> Thing:
        return Thing(shape, colour, rgb, centre(rng, size), centre(rng, size), size, angle)

    return first_fitting(draw, lambda thing: is_free(thing_box(thing), taken), _TRIES)


def _place_print(
    rng: np.random.Generator, colours: Sequence[str], background: Background, taken: Sequence[Box]
) -> Print | None:
    colour, font, text = one_of(rng, colours), one_of(rng, FONT_NAMES), _text(rng)
    rgb = draw_shade(rng, colour, partial(print_stands_out, background=background))
    height, angle = between(rng, _LOWEST_PRINT, _HIGHEST_PRINT), between(rng, -PRINT_TURN, PRINT_TURN)
    width = extent(font, text)[0] * height
    if width > 1 - 2 * MARGIN:
        return None

    def draw() -> Print:
        return Print(text, colour, rgb, font, centre(rng, width), centre(rng, height), height, angle)

    def fits(printed: Print) -> bool:
        box = print_box(printed)
        return min(box) >= MARGIN and max(box) <= 1 - MARGIN and is_free(box, taken)

    return first_fitting(draw, fits, _TRIES)


def _text(rng: np.random.Generator) -> str:
    while True:
        letters = digits if rng.random() < 0.25 else ascii_uppercase
        text = "".join(one_of(rng, letters) for _ in range(whole_between(rng, 1, 5)))
        if not is_unseen_text(text):
            return text
