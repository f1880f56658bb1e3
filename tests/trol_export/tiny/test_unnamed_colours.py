"""Scenes in colours without a name: everything else stays, and no colour comes near one that has a name."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from trol_benchmarks.world.contrast import print_stands_out, thing_stands_out
from trol_benchmarks.world.looks import draw_shade
from trol_benchmarks.world.sampling import KINDS, sample_scene
from trol_benchmarks.world.scene import COLOURS, Rgb, Scene
from trol_export.tiny.patch_labels import LABELS
from trol_export.tiny.unnamed_colours import COLOUR_LABELS, LEAST_DISTANCE, in_unnamed_colours, unnamed_colour


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Scene, Scene]]:
    """Scenes as they were and as they are then."""
    rng = np.random.default_rng(0)
    found = [sample_scene(rng, "train", kind) for kind in KINDS for _ in range(30)]
    return [(scene, in_unnamed_colours(rng, scene)) for scene in found]


def bars(scene: Scene) -> tuple[Rgb, ...]:
    return tuple(bar.rgb for bar in scene.chart.bars) if scene.chart else ()


def drawn_colours(scene: Scene) -> list[Rgb]:
    return [*(thing.rgb for thing in scene.things), *(printed.rgb for printed in scene.prints), *bars(scene)]


def in_white(scene: Scene) -> Scene:
    """The scene as it would be if everything in it were white."""
    white = (255, 255, 255)
    return replace(
        scene,
        things=tuple(replace(thing, rgb=white) for thing in scene.things),
        prints=tuple(replace(printed, rgb=white) for printed in scene.prints),
        chart=scene.chart and replace(scene.chart, bars=tuple(replace(bar, rgb=white) for bar in scene.chart.bars)),
    )


def test_nothing_but_colours_is_other_than_before(scenes: list[tuple[Scene, Scene]]) -> None:
    for before, after in scenes:
        assert in_white(after) == in_white(before)
        assert all(one != other for one, other in zip(drawn_colours(before), drawn_colours(after), strict=True))


def test_no_colour_is_as_near_to_a_name_as_any_shade_of_it(scenes: list[tuple[Scene, Scene]]) -> None:
    rng = np.random.default_rng(1)
    for name, named in COLOURS.items():
        shades = [draw_shade(rng, name, lambda _: True) for _ in range(3000)]
        assert max(math.dist(shade, named) for shade in shades) < LEAST_DISTANCE
        assert all(math.dist(colour, named) >= LEAST_DISTANCE for _, after in scenes for colour in drawn_colours(after))


def test_everything_still_stands_out_from_the_background(scenes: list[tuple[Scene, Scene]]) -> None:
    for _, after in scenes:
        background = after.look.background
        assert all(thing_stands_out(rgb, background) for rgb in drawn_colours(after))
        assert all(print_stands_out(printed.rgb, background) for printed in after.prints)


def test_colours_come_from_all_sides_of_a_name() -> None:
    rng = np.random.default_rng(0)
    found = np.array([unnamed_colour(rng, lambda _: True) for _ in range(2000)])
    near_green = found[np.linalg.norm(found - COLOURS["green"], axis=1) < 100] - COLOURS["green"]
    assert ((near_green > 20).any(0) & (near_green < -20).any(0)).all()


def test_what_says_something_of_colours_is_a_colour_label() -> None:
    names = {label for label, says_it in zip(LABELS, COLOUR_LABELS.tolist(), strict=True) if says_it}
    assert names == {*COLOURS, *(f"{count} of its colour" for count in range(1, 7))}
