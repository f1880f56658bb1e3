from collections import Counter
from dataclasses import replace

import pytest

from hand_made_scenes import LOOK, chart, objects, print_at, printed
from trol_benchmarks.world.description import describe, grammar_texts, miscounts, named
from trol_benchmarks.world.scene import Scene
from trol_runtime.errors import UsageError


def test_one_thing_is_described_in_the_singular() -> None:
    assert describe(objects("red circle")) == "There is one object: a red circle."


def test_things_are_named_from_left_to_right_and_those_above_each_other_from_above() -> None:
    scene = objects("green cross", "red circle", "orange star", at=((0.8, 0.1), (0.2, 0.9), (0.8, 0.05)))
    assert describe(scene) == "There are three objects: a red circle, an orange star and a green cross."


def test_things_alike_are_named_each() -> None:
    assert describe(objects("red ring", "red ring")) == "There are two objects: a red ring and a red ring."


@pytest.mark.parametrize(
    ("text", "colour", "description"),
    [
        ("CAT", "red", "The word CAT is printed in red."),
        ("42", "black", "The number 42 is printed in black."),
    ],
)
def test_printed_text_is_given_as_it_is_with_its_colour(text: str, colour: str, description: str) -> None:
    assert describe(printed(text, colour)) == description


def test_two_prints_share_a_sentence_from_left_to_right() -> None:
    scene = Scene(LOOK, prints=(print_at("42", "blue", 0.7), print_at("OWL", "red", 0.3)))
    assert describe(scene) == "The word OWL is printed in red and the number 42 is printed in blue."


def test_things_with_text_take_two_sentences() -> None:
    scene = printed("CAT", "red", beside=["blue moon"])
    assert describe(scene) == "There is one object: a blue moon. The word CAT is printed in red."


def test_a_chart_is_described_by_its_bars_from_left_to_right() -> None:
    scene = chart(red=0.5, blue=1.0, green=0.2, black=0.7)
    assert describe(scene) == "A bar chart with four bars: red, blue, green and black."


def test_an_empty_picture_has_no_description() -> None:
    with pytest.raises(UsageError, match=r"^an empty picture has no description; put a thing, a print or a chart into"):
        describe(Scene(LOOK))


def test_more_things_than_it_has_words_to_count_are_refused() -> None:
    crowd = objects(*["red ring"] * 9)
    with pytest.raises(UsageError, match=r"^a description counts to 8, and this picture has 9 objects$"):
        describe(crowd)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("There is one object: a red circle.", {"red circle": 1}),
        ("A red circle and two blue crosses.", {"red circle": 1, "blue cross": 2}),
        ("Two red circles, a red circle", {"red circle": 3}),
        ("There are 2 objects: an orange star and a white moon", {"orange star": 1, "white moon": 1}),
        ("The word CAT is printed in red.", {"CAT in red": 1}),
        ("the word cat is printed in red", {"CAT in red": 1}),
        ("The word is CAT, in red", {"CAT in red": 1}),
        ("A red CAT and a black 42.", {"CAT in red": 1, "42 in black": 1}),
        ("The word MOON is printed in red and the number 42 in blue.", {"MOON in red": 1, "42 in blue": 1}),
        ("The word RED is printed in blue.", {"RED in blue": 1}),
        ("The word CAT.", {"CAT in no colour": 1}),
        ("2 red circles and a blue star", {"red circle": 2, "blue star": 1}),
        ("The word on the left is CAT, in red.", {"CAT in red": 1}),
        ("Bars: red and blue.", {"bar in red": 1, "bar in blue": 1}),
        ("A bar chart with two bars: red and blue.", {"bar in red": 1, "bar in blue": 1}),
        ("A red star on a white background.", {"red star": 1}),
        ("A blue ring. The number 7 is printed in white.", {"blue ring": 1, "7 in white": 1}),
        ("Nothing to see.", {}),
        ("", {}),
    ],
)
def test_names_are_found_in_any_order_and_wording(text: str, names: dict[str, int]) -> None:
    assert named(text) == Counter(names)


@pytest.mark.parametrize(
    "text",
    [
        "There are two objects: a red circle.",
        "There is one object: a red circle and a blue star.",
        "2 bars: red, blue and green",
        "A bar chart with five bars: red and blue. There is one object: a red circle.",
    ],
)
def test_a_total_that_is_not_the_number_of_names_is_a_miscount(text: str) -> None:
    assert miscounts(text)


@pytest.mark.parametrize(
    "text",
    [
        "There are two objects: a red circle and a blue star. The number 42 is printed in red.",
        "A bar chart with two bars: red and blue.",
        "A red circle.",
        "Two red circles and a star.",
        "",
    ],
)
def test_a_right_total_or_none_is_no_miscount(text: str) -> None:
    assert not miscounts(text)


@pytest.mark.parametrize(
    ("scene", "other"),
    [
        (objects("red circle", "blue star"), objects("red star", "blue circle")),
        (objects("red circle"), objects("red circle", "red circle")),
        (printed("CAT", "red"), printed("CAT", "blue")),
        (printed("CAT", "red"), printed("COT", "red")),
        (chart(red=1.0, blue=0.5), chart(red=1.0, blue=0.5, green=0.2)),
        (printed("CAT", "red", beside=["blue moon"]), printed("CAT", "red")),
    ],
)
def test_descriptions_of_pictures_that_differ_name_different_things(scene: Scene, other: Scene) -> None:
    assert named(describe(scene)) != named(describe(other))


def test_the_place_of_things_changes_the_order_and_not_what_is_named() -> None:
    scene = objects("red circle", "blue star")
    mirrored = replace(scene, things=tuple(replace(thing, x=1 - thing.x) for thing in scene.things))
    assert describe(scene) != describe(mirrored)
    assert named(describe(scene)) == named(describe(mirrored))


def test_the_texts_of_the_grammar_hold_the_words_of_every_description() -> None:
    words = set(" ".join(grammar_texts()).replace(".", " ").replace(":", " ").replace(",", " ").split())
    scenes = [objects("red ring"), objects(*["orange cross"] * 8), printed("CAT", "white"), chart(red=1.0, blue=0.5)]
    for scene in scenes:
        assert set(describe(scene).replace(".", "").replace(":", "").replace(",", "").split()) - {"CAT"} <= words
