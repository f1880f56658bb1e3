"""Crowded scenes: many letters, all to be read, and nothing that belongs to another split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from trol_benchmarks.world.contrast import print_stands_out, thing_stands_out
from trol_benchmarks.world.placing import are_apart, print_box, thing_box
from trol_benchmarks.world.sampling import sample_scene
from trol_benchmarks.world.scene import Scene
from trol_benchmarks.world.splits import belongs, is_unseen_pair, is_unseen_text
from trol_export.tiny.crowded import crowded_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [crowded_scene(rng) for _ in range(100)]


def test_the_same_random_numbers_give_the_same_scene() -> None:
    assert crowded_scene(np.random.default_rng(3)) == crowded_scene(np.random.default_rng(3))


def letters_a_scene(scenes: Sequence[Scene]) -> float:
    return float(np.mean([sum(len(text.text) for text in scene.prints) for scene in scenes]))


def test_there_are_several_times_as_many_letters_as_in_the_worlds_own_scenes(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    own = [sample_scene(rng, "train") for _ in range(300)]
    assert letters_a_scene(scenes) > 3 * letters_a_scene(own)
    assert {letter for scene in scenes for text in scene.prints for letter in text.text} == set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    )


def test_they_show_nothing_that_training_is_not_to_see(scenes: list[Scene]) -> None:
    assert not any(is_unseen_pair(thing.colour, thing.shape) for scene in scenes for thing in scene.things)
    assert not any(is_unseen_text(text.text) for scene in scenes for text in scene.prints)
    assert all(belongs(scene, "train") for scene in scenes)


def test_nothing_lies_on_anything_else_or_leaves_the_picture(scenes: list[Scene]) -> None:
    for scene in scenes:
        boxes = [*map(thing_box, scene.things), *map(print_box, scene.prints)]
        assert all(are_apart(one, other) for one, other in combinations(boxes, 2))
        assert all(min(box) >= 0 and max(box) <= 1 for box in boxes)


def test_everything_stands_out_from_the_background(scenes: list[Scene]) -> None:
    for scene in scenes:
        background = scene.look.background
        assert all(thing_stands_out(thing.rgb, background) for thing in scene.things)
        assert all(print_stands_out(text.rgb, background) for text in scene.prints)
