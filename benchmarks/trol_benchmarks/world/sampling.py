"""Draws scenes at random: a background, then names that stand out from it and that the split may show, then places."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from trol_benchmarks.world.chance import one_of
from trol_benchmarks.world.looks import draw_background, draw_look
from trol_benchmarks.world.naming import name_bars, name_objects, name_prints
from trol_benchmarks.world.placing import place, place_bars
from trol_benchmarks.world.scene import Scene, require_known
from trol_benchmarks.world.splits import SPLITS, Split

Kind = Literal["objects", "text", "chart"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NAMING = {"objects": name_objects, "text": name_prints, "chart": name_bars}
_FREQUENCIES: tuple[Kind, ...] = ("objects",) * 5 + ("text",) * 3 + ("chart",) * 2


def sample_scene(rng: np.random.Generator, split: Split, kind: Kind | None = None) -> Scene:
    """A scene that belongs to `split`; without `kind` half are objects, 30 % text and 20 % charts.

    Half of the scenes of objects and of text for validation and test hold a pair, word or number kept for their split;
    the others are new combinations of known ones. Raises UsageError for an unknown split or kind, MissingExtraError
    without matplotlib's fonts.
    """
    require_known("split", split, SPLITS)
    if kind is not None:
        require_known("kind of scene", kind, KINDS)
    name = _NAMING[kind or one_of(rng, _FREQUENCIES)]
    kept = split != "train" and rng.random() < 0.5
    while True:  # names are cheap: most draws of a test scene, one in ten of the combinations, are in vain
        background = draw_background(rng)
        names = name(rng, background, split, kept)
        if names.split == split:
            break
    look = draw_look(rng, background)
    if names.bars:
        return Scene(look, chart=place_bars(rng, names.bars, background))
    things, prints = place(rng, names.pairs, names.texts, background)
    return Scene(look, things, prints)
