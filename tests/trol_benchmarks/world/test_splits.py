from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations
from typing import Any, cast

import pytest

from trol_benchmarks.world import words
from trol_benchmarks.world.scene import COLOURS, SHAPES, Bar, Chart, Look, Print, Scene, Thing
from trol_benchmarks.world.splits import (
    NUMBERS,
    PAIRS,
    SPLITS,
    Combination,
    Split,
    belongs,
    combination,
    is_unseen_pair,
    is_unseen_text,
    pair_split,
    text_split,
)
from trol_runtime.errors import UsageError

LOOK = Look(side=168, background=((200, 200, 200), (200, 200, 200)))
BOAT = Print("BOAT", "red", COLOURS["red"], "stix", x=0.5, y=0.2, height=0.15)


def thing(colour: str, shape: str, x: float = 0.5) -> Thing:
    return Thing(shape, colour, COLOURS[colour], x=x, y=0.6, size=0.2)


def chart(*colours: str) -> Chart:
    return Chart(tuple(Bar(colour, COLOURS[colour], 0.5) for colour in colours), (0.1, 0.1, 0.9, 0.9), (0, 0, 0))


def test_the_test_keeps_every_colour_and_every_shape_once() -> None:
    kept = [pair for pair in PAIRS if pair_split(*pair) == "test"]
    assert sorted(colour for colour, _ in kept) == sorted(COLOURS)
    assert sorted(shape for _, shape in kept) == sorted(SHAPES)


def test_validation_keeps_four_other_pairs_and_training_none() -> None:
    assert Counter(pair_split(*pair) for pair in PAIRS) == {None: 52, "test": 8, "validation": 4}


def test_every_colour_and_shape_is_left_to_training_in_six_pairs_or_more() -> None:
    left = [pair for pair in PAIRS if pair_split(*pair) is None]
    for names in zip(*left, strict=True):
        assert min(Counter(names).values()) >= 6


def test_words_belong_to_the_split_of_their_list_and_those_of_the_train_list_to_all() -> None:
    assert {text_split(word) for word in words.TEST} == {"test"}
    assert {text_split(word) for word in words.VALIDATION} == {"validation"}
    assert {text_split(word) for word in words.TRAIN} == {None}


def test_a_made_up_word_belongs_to_training_alone() -> None:
    assert text_split("BLOAF") == "train"
    for other in COLOURS:
        assert Combination(texts=((other, "BLOAF"),)).split == "train"


def test_the_test_keeps_a_tenth_of_the_numbers_of_two_and_three_digits() -> None:
    kept = Counter(text_split(number) for number in NUMBERS)
    assert (kept["test"], kept["validation"], kept[None]) == (103, 42, 855)
    assert {text_split(number) for number in NUMBERS[:10]} == {None}


def test_unseen_is_what_training_never_shows() -> None:
    assert is_unseen_pair("red", "heart")
    assert is_unseen_pair("green", "ring")
    assert not is_unseen_pair("red", "circle")
    assert is_unseen_text("YEAST")
    assert is_unseen_text("CANOE")
    assert not any(is_unseen_text(text) for text in ("BOAT", "BLOAF", "7"))


def test_one_kept_part_takes_the_whole_scene_to_its_split() -> None:
    for colour in COLOURS:
        assert Combination(pairs=(("red", "heart"), ("red", "circle")), texts=((colour, "BOAT"),)).split == "test"
        assert Combination(texts=((colour, "CANOE"), (colour, "7"))).split == "validation"


def test_parts_kept_for_two_splits_make_a_scene_that_none_may_hold() -> None:
    scene = Scene(LOOK, (thing("red", "heart", 0.2), thing("green", "ring", 0.8)))
    assert not any(belongs(scene, split) for split in SPLITS)
    assert Combination(pairs=(("red", "heart"),), texts=(("red", "BLOAF"),)).split is None


def test_eight_in_ten_of_the_other_combinations_are_for_training() -> None:
    left = [pair for pair in PAIRS if pair_split(*pair) is None]
    pairs = Counter(Combination(pairs=pair).split for pair in combinations(left, 2))
    bars = Counter(Combination(bars=colours).split for colours in permutations(COLOURS, 4))
    texts = Counter(Combination(texts=((colour, word),)).split for colour in COLOURS for word in words.TRAIN)
    for shares in (pairs, bars, texts):
        total = sum(shares.values())
        # Four standard deviations of the smallest of the three, of 1,326 combinations, are 0.033.
        assert shares["test"] / total == pytest.approx(0.1, abs=0.033)
        assert shares["validation"] / total == pytest.approx(0.1, abs=0.033)


def test_where_things_lie_and_in_which_order_they_are_named_changes_no_split() -> None:
    one = (thing("red", "circle", 0.2), thing("blue", "star", 0.8))
    other = (thing("blue", "star", 0.3), thing("red", "circle", 0.7))
    assert combination(Scene(LOOK, one)).split == combination(Scene(LOOK, other)).split


def test_the_order_of_bars_is_part_of_a_combination() -> None:
    orders = permutations(("red", "green", "blue", "black", "white"))
    assert {combination(Scene(LOOK, chart=chart(*order))).split for order in orders} == set(SPLITS)


# Records of accuracy hold only while every combination keeps its split.
@pytest.mark.parametrize(
    ("scene", "split"),
    [
        (Scene(LOOK, (thing("red", "circle"),)), "train"),
        (Scene(LOOK, (thing("blue", "star"),)), "validation"),
        (Scene(LOOK, (thing("red", "cross"),)), "test"),
        (Scene(LOOK, (thing("red", "circle"), thing("blue", "square"))), "validation"),
        (Scene(LOOK, (thing("red", "circle"), thing("yellow", "heart"))), "test"),
        (Scene(LOOK, (thing("blue", "star"),), (BOAT,)), "train"),
        (Scene(LOOK, chart=chart("red", "green", "blue")), "train"),
        (Scene(LOOK, chart=chart("blue", "green", "red")), "test"),
    ],
)
def test_a_combination_keeps_its_split_for_ever(scene: Scene, split: Split) -> None:
    assert [name for name in SPLITS if belongs(scene, name)] == [split]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        belongs(Scene(LOOK), cast(Any, "dev"))
    assert str(error.value) == "there is no split 'dev' in the drawn world; known are train, validation, test"
