"""What patches show: scenes made by hand, and the same compared with what is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from trol_benchmarks.world import words
from trol_benchmarks.world.picture import draw
from trol_benchmarks.world.sampling import sample_scene
from trol_benchmarks.world.scene import COLOURS, SHAPES, Bar, Chart, Look, Print, Scene, Thing
from trol_benchmarks.world.splits import NUMBERS
from trol_export.tiny.patch_labels import (
    CHARACTER_PLACES,
    CHARACTERS,
    LABELS,
    MIDDLE,
    TALLEST,
    patch_labels,
)

GRID, PATCH = 12, 14
ALONE = ("thing 0", "thing 0 from above", "1 of its colour", "1 of its shape")  # labels of the only thing
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
LOOK = Look(GRID * PATCH, (BLACK, BLACK))

Patches = set[tuple[int, int]]  # (row, column)


def thing(name: str, x: float, y: float, size: float) -> Thing:
    colour, shape = name.split()
    return Thing(shape, colour, COLOURS[colour], x, y, size)


def printed(text: str, angle: float = 0.0, x: float = 0.5) -> Print:
    """Red print with capitals two patches tall."""
    return Print(text, "red", COLOURS["red"], "dejavu-sans-bold", x, 0.5, 2 / GRID, angle)


def labelled(scene: Scene) -> dict[str, Patches]:
    """The patches of every label that some patch has."""
    labels = patch_labels(scene, GRID).reshape(GRID, GRID, len(LABELS))
    found = {label: labels[:, :, number] for number, label in enumerate(LABELS)}
    return {label: {(int(y), int(x)) for y, x in np.argwhere(has)} for label, has in found.items() if has.any()}


def rectangle(rows: range, columns: range) -> Patches:
    return {(row, column) for row in rows for column in columns}


def place(number: int) -> str:
    return f"character {number}"


# The labels


def test_every_label_has_a_name_of_its_own() -> None:
    assert len(set(LABELS)) == len(LABELS)
    assert {*COLOURS, *SHAPES, *CHARACTERS} < set(LABELS)


def test_every_text_of_the_drawn_world_can_be_labelled() -> None:
    texts = [*words.TRAIN, *words.VALIDATION, *words.TEST, *NUMBERS]
    assert set("".join(texts)) <= set(CHARACTERS)
    assert max(map(len, texts)) <= len(CHARACTER_PLACES)


def test_every_patch_has_a_row_of_labels_in_the_order_of_the_towers_features() -> None:
    labels = patch_labels(Scene(LOOK, (thing("red square", 0.8, 0.3, 0.01),)), GRID)
    assert labels.dtype == np.bool_
    assert labels.shape == (GRID * GRID, len(LABELS))
    column, row = int(0.8 * GRID), int(0.3 * GRID)
    assert np.unique(np.nonzero(labels)[0]).tolist() == [row * GRID + column]  # row-major


# Things


def test_the_patches_of_a_thing_have_its_colour_its_shape_and_its_place() -> None:
    # From 0.323 to 0.677 of the side, which is from patch 3.88 to 8.12: an eighth of a patch is too little.
    scene = Scene(LOOK, (thing("red square", 0.5, 0.5, 0.5),))
    inside = rectangle(range(4, 8), range(4, 8))
    assert labelled(scene) == {"red": inside, "square": inside, **dict.fromkeys(ALONE, inside), MIDDLE: {(6, 6)}}


def test_things_of_one_colour_share_its_label_and_keep_their_shapes_apart() -> None:
    scene = Scene(LOOK, (thing("blue star", 0.25, 0.25, 0.2), thing("blue ring", 0.75, 0.75, 0.2)))
    found = labelled(scene)
    of_both = {"blue", "2 of its colour", "1 of its shape", MIDDLE}
    assert found.keys() == of_both | {"star", "thing 0", "thing 0 from above", "ring", "thing 1", "thing 1 from above"}
    assert found["blue"] == found["star"] | found["ring"]
    assert not found["star"] & found["ring"]


def test_things_are_counted_from_the_left_and_from_above_whatever_their_order_in_the_scene() -> None:
    right, left = thing("blue star", 0.75, 0.2, 0.2), thing("red ring", 0.25, 0.7, 0.2)
    found = labelled(Scene(LOOK, (right, left)))
    assert found["thing 0"] == found["thing 1 from above"] == found["red"]
    assert found["thing 1"] == found["thing 0 from above"] == found["blue"]


def test_a_thing_tells_how_many_there_are_of_its_colour_and_of_its_shape() -> None:
    places = {"red ring": 0.15, "red star": 0.38, "blue star": 0.62, "green star": 0.85}
    found = labelled(Scene(LOOK, tuple(thing(name, x, 0.5, 0.2) for name, x in places.items())))
    assert found["2 of its colour"] == found["red"]
    assert found["1 of its colour"] == found["blue"] | found["green"]
    assert found["3 of its shape"] == found["star"]
    assert found["1 of its shape"] == found["ring"]


def test_the_middle_of_a_ring_is_labelled_although_nothing_is_drawn_there() -> None:
    found = labelled(Scene(LOOK, (thing("red ring", 0.54, 0.54, 0.6),)))
    assert found[MIDDLE] == {(6, 6)}
    assert (6, 6) in found["ring"]
    assert (5, 5) not in found["ring"]


def test_a_patch_on_which_two_things_lie_has_the_labels_of_both() -> None:
    found = labelled(Scene(LOOK, (thing("red circle", 0.45, 0.5, 0.4), thing("green heart", 0.55, 0.5, 0.4))))
    assert found["red"] & found["green"]
    assert found["red"] - found["green"]
    assert found["green"] - found["red"]


@pytest.mark.parametrize(
    ("x", "y", "patch"), [(0.5, 0.5, (6, 6)), (0.0, 0.0, (0, 0)), (1.0, 1.0, (11, 11)), (0.04, 0.96, (11, 0))]
)
def test_a_thing_too_small_for_any_patch_labels_the_one_it_lies_on(x: float, y: float, patch: tuple[int, int]) -> None:
    found = labelled(Scene(LOOK, (thing("white moon", x, y, 0.02),)))
    assert found == {label: {patch} for label in ("white", "moon", *ALONE, MIDDLE)}


def test_a_patch_that_shows_nothing_has_no_label() -> None:
    assert labelled(Scene(LOOK)) == {}


# Print


def test_characters_have_their_own_patches_and_places_from_left_to_right() -> None:
    found = labelled(Scene(LOOK, prints=(printed("CAT"),)))
    assert found.keys() == {"red", "C", "A", "T", place(0), place(1), place(2)}
    middles = [np.mean([column for _, column in found[character]]) for character in "CAT"]
    assert middles == sorted(middles)
    assert middles[1] == pytest.approx(GRID / 2 - 0.5, abs=0.5)
    for number, character in enumerate("CAT"):
        assert found[character] == found[place(number)]
        assert {row for row, _ in found[character]} == {5, 6}
    assert found["red"] == found["C"] | found["A"] | found["T"]


def test_a_character_that_comes_twice_is_labelled_at_both_places() -> None:
    found = labelled(Scene(LOOK, prints=(printed("707"),)))
    assert found["7"] == found[place(0)] | found[place(2)]
    assert found["0"] == found[place(1)]


def test_two_texts_have_their_first_characters_each() -> None:
    found = labelled(Scene(LOOK, prints=(printed("AB", x=0.25), printed("12", x=0.75))))
    assert found[place(0)] == found["A"] | found["1"]
    assert found[place(1)] == found["B"] | found["2"]


def test_the_places_of_turned_print_rise_and_fall_with_it() -> None:
    for angle, last_is_higher in ((10.0, True), (-10.0, False)):
        found = labelled(Scene(LOOK, prints=(printed("HOUSE", angle),)))
        first, last = (np.mean([row for row, _ in found[place(number)]]) for number in (0, 4))
        assert (last < first) == last_is_higher


# Charts


def test_bars_have_their_colours_from_the_bottom_up_to_their_heights() -> None:
    bars = tuple(
        Bar(colour, COLOURS[colour], height) for colour, height in {"red": 0.25, "blue": 1.0, "green": 0.5}.items()
    )
    found = labelled(Scene(LOOK, chart=Chart(bars, (0.0, 1 / 3, 1.0, 1.0), WHITE)))
    assert found.keys() == {"red", "blue", "green", "bar 0", "bar 1", "bar 2", TALLEST}
    # Slots of four patches, of which a bar takes 2.8 in the middle; 8 patches are the full height.
    assert found["red"] == rectangle(range(10, 12), range(1, 3))
    assert found["blue"] == rectangle(range(4, 12), range(5, 7))
    assert found["green"] == rectangle(range(8, 12), range(9, 11))
    assert [found[f"bar {number}"] for number in range(3)] == [found["red"], found["blue"], found["green"]]
    assert found[TALLEST] == found["blue"]


# What is drawn


def alone(scene: Scene) -> Iterator[tuple[str, str, Scene]]:
    """Everything that a scene shows, one at a time and white on black: what it is, a label of it, and the scene."""
    for one in scene.things:
        yield one.shape, one.shape, Scene(LOOK, things=(replace(one, rgb=WHITE),))
    for text in scene.prints:
        yield "print", text.colour, Scene(LOOK, prints=(replace(text, rgb=WHITE),))
    if scene.chart:
        bars = scene.chart.bars
        for bar in bars:
            white = tuple(replace(other, rgb=WHITE if other is bar else BLACK) for other in bars)
            yield "bar", bar.colour, Scene(LOOK, chart=Chart(white, scene.chart.box, BLACK))


def drawn_share(scene: Scene) -> NDArray[np.float64]:
    """Of each patch, how much of it is drawn on: (grid * grid,)."""
    ink = np.asarray(draw(scene))[:, :, 0] > 127
    return ink.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).reshape(-1)


def test_labels_lie_where_things_print_and_bars_are_drawn() -> None:
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(150):
        for what, label, scene in alone(sample_scene(rng, "train")):
            has, share = patch_labels(scene, GRID)[:, LABELS.index(label)], drawn_share(scene)
            found.setdefault(what, []).append((float((share[has] > 0.02).mean()), share[has].sum() / share.sum()))
    assert found.keys() == {*SHAPES, "print", "bar"}
    for what, measured in found.items():
        shows_it, of_it = np.mean(measured, axis=0)
        # The middle of a ring or a moon is labelled, and shows nothing of it.
        assert shows_it > 0.7, what
        # Patches that are touched at their edge alone have no label.
        assert of_it > 0.5, what


def test_labels_of_a_coloured_scene_lie_on_its_colours() -> None:
    scene = Scene(
        LOOK,
        (thing("red square", 0.25, 0.25, 0.3), thing("green circle", 0.75, 0.3, 0.3)),
        (replace(printed("DOG"), y=0.8, colour="blue", rgb=COLOURS["blue"]),),
    )
    picture = np.asarray(draw(scene)).reshape(GRID, PATCH, GRID, PATCH, 3)
    for name in ("red", "green", "blue"):
        is_drawn = (picture == COLOURS[name]).all(-1).any((1, 3))
        assert all(is_drawn[patch] for patch in labelled(scene)[name]), name
