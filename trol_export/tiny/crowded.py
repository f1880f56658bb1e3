"""Scenes with as much in them as there is room for: a tower sees ten times as many letters in the same time."""

from __future__ import annotations

import numpy as np

from trol_benchmarks.world.chance import between, one_of, some_of, whole_between
from trol_benchmarks.world.contrast import print_stands_out, thing_stands_out
from trol_benchmarks.world.fonts import FONTS, extent
from trol_benchmarks.world.looks import draw_background, draw_look, draw_shade
from trol_benchmarks.world.naming import MOST_THINGS
from trol_benchmarks.world.placing import (
    LARGEST_THING,
    LOWEST_PRINT,
    MARGIN,
    PRINT_TURN,
    SMALLEST_THING,
    THING_TURN,
    Box,
    are_apart,
    centre,
    print_box,
    thing_box,
)
from trol_benchmarks.world.scene import COLOURS, Print, Scene, Thing
from trol_benchmarks.world.splits import PAIRS, is_unseen_text, pair_split

_LETTERS, _DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
_PRINTS = 12  # that are tried to be placed
_HIGHEST_PRINT = 0.16  # lower than the largest: more of them fit
_TRIES = 8  # places for each
_FONT_NAMES = tuple(FONTS)
_TRAINED_PAIRS = tuple(pair for pair in PAIRS if pair_split(*pair) is None)


def crowded_scene(rng: np.random.Generator) -> Scene:
    """A scene of up to 6 things and many texts of random letters or digits; it shows nothing that training may not."""
    background = draw_background(rng)
    look = draw_look(rng, background)
    taken: list[Box] = []
    things: list[Thing] = []
    prints: list[Print] = []
    pairs = [pair for pair in _TRAINED_PAIRS if thing_stands_out(COLOURS[pair[0]], background)]
    colours = [colour for colour, rgb in COLOURS.items() if print_stands_out(rgb, background)]
    for colour, shape in some_of(rng, pairs, whole_between(rng, 0, MOST_THINGS)):
        rgb = draw_shade(rng, colour, lambda shade: thing_stands_out(shade, background))
        size, angle = between(rng, SMALLEST_THING, LARGEST_THING), between(rng, -THING_TURN, THING_TURN)
        for _ in range(_TRIES):
            thing = Thing(shape, colour, rgb, centre(rng, size), centre(rng, size), size, angle)
            if all(are_apart(thing_box(thing), box) for box in taken):
                taken.append(thing_box(thing))
                things.append(thing)
                break
    for _ in range(_PRINTS):
        colour, font, text = one_of(rng, colours), one_of(rng, _FONT_NAMES), _text(rng)
        rgb = draw_shade(rng, colour, lambda shade: print_stands_out(shade, background))
        height, angle = between(rng, LOWEST_PRINT, _HIGHEST_PRINT), between(rng, -PRINT_TURN, PRINT_TURN)
        width = extent(font, text)[0] * height
        if width > 1 - 2 * MARGIN:
            continue
        for _ in range(_TRIES):
            printed = Print(text, colour, rgb, font, centre(rng, width), centre(rng, height), height, angle)
            box = print_box(printed)
            if min(box) >= MARGIN and max(box) <= 1 - MARGIN and all(are_apart(box, other) for other in taken):
                taken.append(box)
                prints.append(printed)
                break
    return Scene(look, tuple(things), tuple(prints))


def _text(rng: np.random.Generator) -> str:
    while True:
        letters = _DIGITS if rng.random() < 0.25 else _LETTERS
        text = "".join(one_of(rng, letters) for _ in range(whole_between(rng, 1, 5)))
        if not is_unseen_text(text):
            return text
