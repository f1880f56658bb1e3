"""Scenes in colours that have no name: what shape something has, and which letter, a tower shall see in any colour.

Some pairs of colour and shape occur in no training picture. A tower that sees a shape in its seven or six colours alone
learns it as a shape of those: where all that is yellow and has points is a cross, a yellow star is taken for one. In
colours far from all names it has to tell every shape from every other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trol_benchmarks.world.contrast import print_stands_out, thing_stands_out
from trol_benchmarks.world.scene import COLOURS, Rgb, Scene
from trol_export.tiny.patch_labels import LABELS, OF_COLOUR

# In steps of 255, between such a colour and any that has a name: more than from a name's colour to its farthest shade,
# a dark white.
LEAST_DISTANCE = 60.0
# The labels that nothing can be said about in such a picture: bool (labels,).
COLOUR_LABELS: Tensor = torch.tensor([label in {*COLOURS, *OF_COLOUR} for label in LABELS])


def in_unnamed_colours(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with things, prints and bars in such colours that stand out; their names stay, and are wrong."""
    background = scene.look.background
    things_suit = partial(thing_stands_out, background=background)
    prints_suit = partial(print_stands_out, background=background)
    return replace(
        scene,
        things=tuple(replace(thing, rgb=unnamed_colour(rng, things_suit)) for thing in scene.things),
        prints=tuple(replace(printed, rgb=unnamed_colour(rng, prints_suit)) for printed in scene.prints),
        chart=scene.chart
        and replace(
            scene.chart,
            bars=tuple(replace(bar, rgb=unnamed_colour(rng, things_suit)) for bar in scene.chart.bars),
        ),
    )


def unnamed_colour(rng: np.random.Generator, suits: Callable[[Rgb], bool]) -> Rgb:
    """One of all colours without a name that suit, each as likely; there must be some."""
    while True:
        red, green, blue = (int(channel) for channel in rng.integers(0, 256, 3))
        colour = red, green, blue
        if suits(colour) and all(math.dist(colour, named) >= LEAST_DISTANCE for named in COLOURS.values()):
            return colour
