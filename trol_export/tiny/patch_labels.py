"""What the patches of a drawn picture show: the labels by which the vision tower learns to see."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate, pairwise
from string import ascii_uppercase, digits

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trol_benchmarks.world.fonts import extent
from trol_benchmarks.world.naming import MOST_BARS, MOST_THINGS
from trol_benchmarks.world.outlines import draw_shape
from trol_benchmarks.world.picture import bar_boxes
from trol_benchmarks.world.placing import Box
from trol_benchmarks.world.scene import COLOURS, SHAPES, Chart, Print, Scene, Thing

CHARACTERS = ascii_uppercase + digits
MIDDLE, TALLEST = "middle of a thing", "tallest bar"
# Places are counted from the left, as descriptions and readers go; those of things from above, too.
THING_PLACES = tuple(f"thing {place}" for place in range(MOST_THINGS))
THING_HEIGHTS = tuple(f"thing {place} from above" for place in range(MOST_THINGS))
OF_COLOUR = tuple(f"{count} of its colour" for count in range(1, MOST_THINGS + 1))
OF_SHAPE = tuple(f"{count} of its shape" for count in range(1, MOST_THINGS + 1))
BAR_PLACES = tuple(f"bar {place}" for place in range(MOST_BARS))
CHARACTER_PLACES = tuple(f"character {place}" for place in range(5))
# One label each: a patch may show several things at once.
LABELS = (
    *(*COLOURS, *SHAPES, MIDDLE, *THING_PLACES, *THING_HEIGHTS, *OF_COLOUR, *OF_SHAPE),
    *(*BAR_PLACES, TALLEST, *CHARACTERS, *CHARACTER_PLACES),
)
_NUMBER = {label: number for number, label in enumerate(LABELS)}

_LEAST_SHARE = 0.2  # of a patch that something must cover to be a label of it
_PIXELS = 7  # of a patch's side, when a thing is drawn to see what it covers


def patch_labels(scene: Scene, grid: int) -> NDArray[np.bool_]:
    """Which of LABELS each patch of a `grid` x `grid` picture has: bool (grid * grid, labels), row-major."""
    labels = np.zeros((grid, grid, len(LABELS)), np.bool_)

    def mark(box: Box, *names: str) -> None:
        labels[np.ix_(_covered(box, grid, axis=1), _covered(box, grid, axis=0))] |= labelled(names)

    for thing in scene.things:
        names = thing_labels(thing, scene)
        labels[_drawn_patches(thing, grid)] |= labelled(names)
        middle = min(int(thing.y * grid), grid - 1), min(int(thing.x * grid), grid - 1)
        labels[middle] |= labelled((*names, MIDDLE))
    for printed in scene.prints:
        for place, character, box in zip(CHARACTER_PLACES, printed.text, _character_boxes(printed), strict=False):
            mark(box, printed.colour, character, place)
    if scene.chart:
        for names, box in zip(bar_labels(scene.chart), bar_boxes(scene.chart), strict=True):
            mark(box, *names)
    return labels.reshape(grid * grid, len(LABELS))


def thing_labels(thing: Thing, scene: Scene) -> tuple[str, ...]:
    """Labels of a thing: its names, and by those beside it what questions of place and number ask for."""
    things = scene.things
    return (
        thing.colour,
        thing.shape,
        THING_PLACES[sum((other.x, other.y) < (thing.x, thing.y) for other in things)],
        THING_HEIGHTS[sum((other.y, other.x) < (thing.y, thing.x) for other in things)],
        OF_COLOUR[sum(other.colour == thing.colour for other in things) - 1],
        OF_SHAPE[sum(other.shape == thing.shape for other in things) - 1],
    )


def bar_labels(chart: Chart) -> list[tuple[str, ...]]:
    """Labels of every bar."""
    tallest = max(chart.bars, key=lambda bar: bar.height)
    named = zip(BAR_PLACES, chart.bars, strict=False)
    return [(bar.colour, place, *([TALLEST] if bar is tallest else [])) for place, bar in named]


def _covered(box: Box, grid: int, axis: int) -> NDArray[np.intp]:
    """The columns (axis 0) or rows (axis 1) of which the box covers enough, at least the one in its middle."""
    low, high = box[axis] * grid, box[axis + 2] * grid
    edges = np.arange(grid)
    share = np.minimum(edges + 1, high) - np.maximum(edges, low)
    share[min(max(int((low + high) / 2), 0), grid - 1)] = 1.0
    return np.flatnonzero(share >= math.sqrt(_LEAST_SHARE))


def labelled(names: Iterable[str]) -> NDArray[np.bool_]:
    """(labels,), True at these."""
    labels = np.zeros(len(LABELS), np.bool_)
    labels[[_NUMBER[name] for name in names]] = True
    return labels


def _drawn_patches(thing: Thing, grid: int) -> NDArray[np.bool_]:
    """The patches of which the shape itself covers enough: bool (grid, grid)."""
    side = grid * _PIXELS
    mask = Image.new("L", (side, side))
    draw_shape(mask, thing.shape, (thing.x * side, thing.y * side), thing.size * side / 2, thing.angle)
    return np.asarray(mask).reshape(grid, _PIXELS, grid, _PIXELS).mean(axis=(1, 3)) >= 255 * _LEAST_SHARE


def _character_boxes(printed: Print) -> list[Box]:
    """A box around each character: its share of the text's width, along the turned line of text."""
    cosine, sine = math.cos(math.radians(printed.angle)), math.sin(math.radians(printed.angle))
    widths = [extent(printed.font, character)[0] * printed.height for character in printed.text]
    edges = [0.0, *accumulate(widths)]
    boxes = []
    for start, end in pairwise(edges):
        along = (start + end - edges[-1]) / 2
        x, y = printed.x + along * cosine, printed.y - along * sine
        half_width, half_height = (end - start) / 2, printed.height / 2
        boxes.append((x - half_width, y - half_height, x + half_width, y + half_height))
    return boxes
