from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any, cast

import numpy as np
import pytest

from trol_benchmarks.world import words
from trol_benchmarks.world.contrast import brightness, distance
from trol_benchmarks.world.placing import are_apart, overlap, print_box, thing_box
from trol_benchmarks.world.sampling import sample_scene
from trol_benchmarks.world.scene import COLOURS, Bar, Print, Rgb, Scene, Thing
from trol_benchmarks.world.splits import SPLITS, Split, belongs, combination, is_unseen_pair, is_unseen_text
from trol_runtime.errors import UsageError

COUNT = 500  # of each split


@pytest.fixture(scope="module")
def scenes() -> dict[Split, list[Scene]]:
    rng = np.random.default_rng(4)
    return {split: [sample_scene(rng, split) for _ in range(COUNT)] for split in SPLITS}


@pytest.fixture(scope="module")
def all_scenes(scenes: dict[Split, list[Scene]]) -> list[Scene]:
    return [scene for split in SPLITS for scene in scenes[split]]


def drawn_colours(scene: Scene) -> list[tuple[str, Rgb]]:
    parts: list[Thing | Print | Bar] = [*scene.things, *scene.prints, *(scene.chart.bars if scene.chart else ())]
    return [(part.colour, part.rgb) for part in parts]


def is_unseen(scene: Scene) -> bool:
    return any(is_unseen_pair(thing.colour, thing.shape) for thing in scene.things) or any(
        is_unseen_text(printed.text) for printed in scene.prints
    )


# Splits


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_belong_to_the_split_they_were_drawn_for(scenes: dict[Split, list[Scene]], split: Split) -> None:
    assert all(belongs(scene, split) for scene in scenes[split])


def test_no_combination_is_drawn_for_two_splits(scenes: dict[Split, list[Scene]]) -> None:
    shown = {
        split: {(*sorted(c.pairs), *sorted(c.texts), *c.bars) for c in (combination(scene) for scene in scenes[split])}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not shown[one] & shown[other]


def test_training_shows_nothing_that_is_kept_for_another_split(scenes: dict[Split, list[Scene]]) -> None:
    assert not any(is_unseen(scene) for scene in scenes["train"])


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("kind", ["objects", "text"])
def test_half_of_the_scenes_to_measure_by_hold_what_training_never_shows(split: Split, kind: Any) -> None:
    rng = np.random.default_rng(5)
    share = np.mean([is_unseen(sample_scene(rng, split, kind)) for _ in range(COUNT)])
    assert share == pytest.approx(0.5, abs=0.09)  # four standard deviations of 500 draws


def test_half_of_the_words_of_training_are_made_up_and_none_elsewhere(scenes: dict[Split, list[Scene]]) -> None:
    listed = {*words.TRAIN, *words.VALIDATION, *words.TEST}
    made_up = {
        split: [
            printed.text not in listed for scene in scenes[split] for printed in scene.prints if not printed.is_number
        ]
        for split in SPLITS
    }
    assert np.mean(made_up["train"]) == pytest.approx(0.5, abs=0.2)  # four standard deviations of 100 words
    assert not any(made_up["validation"] + made_up["test"])


# What scenes show


def test_half_are_objects_three_in_ten_text_and_two_charts() -> None:
    rng = np.random.default_rng(6)
    charts = np.mean([sample_scene(rng, "train").chart is not None for _ in range(2000)])
    assert charts == pytest.approx(0.2, abs=0.036)  # four standard deviations


def test_scenes_of_objects_hold_one_to_six_things_about_equally_often_and_sometimes_a_print() -> None:
    rng = np.random.default_rng(7)
    drawn = [sample_scene(rng, "train", "objects") for _ in range(1200)]
    counts = Counter(len(scene.things) for scene in drawn)
    assert sorted(counts) == [1, 2, 3, 4, 5, 6]
    assert min(counts.values()) > 130
    assert {len(scene.prints) for scene in drawn} == {0, 1}
    assert np.mean([len(scene.prints) for scene in drawn]) == pytest.approx(0.2, abs=0.05)


def test_scenes_of_text_hold_a_word_a_number_or_both_and_at_most_two_things() -> None:
    rng = np.random.default_rng(8)
    drawn = [sample_scene(rng, "train", "text") for _ in range(300)]
    assert {tuple(sorted(printed.is_number for printed in scene.prints)) for scene in drawn} == {
        *((False,), (True,), (False, True))
    }
    assert {len(scene.things) for scene in drawn} == {0, 1, 2}


def test_charts_stand_alone_with_three_to_five_bars_of_different_colours(all_scenes: list[Scene]) -> None:
    charts = [scene for scene in all_scenes if scene.chart]
    assert not any(scene.things or scene.prints for scene in charts)
    colours = [[bar.colour for bar in scene.chart.bars] for scene in charts if scene.chart]
    assert {len(names) for names in colours} == {3, 4, 5}
    assert all(len(set(names)) == len(names) for names in colours)


def test_the_tallest_bar_leads_by_a_tenth_of_the_chart(all_scenes: list[Scene]) -> None:
    for scene in all_scenes:
        if scene.chart:
            heights = sorted(bar.height for bar in scene.chart.bars)
            assert heights[0] >= 0.15
            assert heights[-1] <= 1
            assert heights[-1] - heights[-2] >= 0.1 - 1e-9  # rounding of the subtraction


def test_several_things_often_share_a_shape_or_a_colour_and_seldom_both() -> None:
    rng = np.random.default_rng(9)
    drawn = [scene.things for scene in (sample_scene(rng, "train", "objects") for _ in range(600))]
    for attribute in ("shape", "colour"):
        most = [max(Counter(getattr(thing, attribute) for thing in things).values()) for things in drawn]
        assert np.mean([count >= 3 for count in most]) > 0.1
    assert 0 < np.mean([len({thing.name for thing in things}) < len(things) for things in drawn]) <= 0.1


# Where and how


def test_things_overlap_by_a_tenth_of_the_smaller_radius_at_most(all_scenes: list[Scene]) -> None:
    overlaps = [overlap(*pair) for scene in all_scenes for pair in combinations(scene.things, 2)]
    assert max(overlaps) <= 0.1
    assert max(overlaps) > 0


def test_print_lies_apart_from_things_and_other_print(all_scenes: list[Scene]) -> None:
    for scene in all_scenes:
        prints = [print_box(printed) for printed in scene.prints]
        things = [thing_box(thing) for thing in scene.things]
        assert all(are_apart(one, other) for one, other in combinations(prints, 2))
        assert all(are_apart(printed, thing) for printed in prints for thing in things)


def test_everything_lies_inside_the_picture(all_scenes: list[Scene]) -> None:
    for scene in all_scenes:
        boxes = [*map(thing_box, scene.things), *map(print_box, scene.prints)]
        boxes += [scene.chart.box] if scene.chart else []
        assert all(0 <= edge <= 1 for box in boxes for edge in box)


def test_sizes_and_turns_stay_readable(all_scenes: list[Scene]) -> None:
    for scene in all_scenes:
        assert all(0.16 <= thing.size <= 0.32 and abs(thing.angle) <= 20 for thing in scene.things)
        assert all(0.16 <= printed.height <= 0.22 and abs(printed.angle) <= 10 for printed in scene.prints)


def test_looks_vary_within_their_limits(all_scenes: list[Scene]) -> None:
    looks = [scene.look for scene in all_scenes]
    assert all(140 <= look.side <= 336 and 0 <= look.noise <= 10 for look in looks)
    assert all(look.quality is None or 55 <= look.quality <= 95 for look in looks)
    assert Counter(look.side for look in looks).most_common(1)[0][0] == 168
    assert {look.texture.pattern if look.texture else None for look in looks} == {*(None, "stripes", "dots", "speckle")}
    assert {look.noise > 0 for look in looks} == {look.quality is None for look in looks} == {True, False}


def test_every_colour_stands_out_from_the_background(all_scenes: list[Scene]) -> None:
    for scene in all_scenes:
        for _, rgb in drawn_colours(scene):
            assert distance(rgb, scene.look.background) >= 90
        for printed in scene.prints:
            steps = [brightness(printed.rgb) - brightness(end) for end in scene.look.background]
            assert min(steps) >= 55 or max(steps) <= -55


def test_no_white_or_yellow_is_printed_on_pale_grounds_and_no_black_on_dark(all_scenes: list[Scene]) -> None:
    for scene in all_scenes:
        level = np.mean([brightness(end) for end in scene.look.background])
        colours = {printed.colour for printed in scene.prints}
        assert not (level > 215 and colours & {"white", "yellow"})
        assert not (level < 65 and "black" in colours)


def test_a_shade_is_nearest_to_the_colour_it_is_called(all_scenes: list[Scene]) -> None:
    for scene in all_scenes:
        for name, rgb in drawn_colours(scene):
            assert min(COLOURS, key=lambda known: distance(rgb, (COLOURS[known],) * 2)) == name


# The call


def test_the_same_seed_draws_the_same_scenes() -> None:
    one, other = np.random.default_rng(10), np.random.default_rng(10)
    assert [sample_scene(one, "test") for _ in range(20)] == [sample_scene(other, "test") for _ in range(20)]


def test_an_unknown_kind_or_split_is_refused_and_the_known_are_listed() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError) as error:
        sample_scene(rng, "train", cast(Any, "photo"))
    assert str(error.value) == "there is no kind of scene 'photo' in the drawn world; known are objects, text, chart"
    with pytest.raises(UsageError) as error:
        sample_scene(rng, cast(Any, "dev"))
    assert str(error.value) == "there is no split 'dev' in the drawn world; known are train, validation, test"
