import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from hand_made_scenes import LOOK, chart, objects, print_at, printed
from trol_benchmarks.world import phrases, words
from trol_benchmarks.world.questions import FAMILIES, FORMS, Question, ask, ask_family, possible, vocabulary_texts
from trol_benchmarks.world.sampling import sample_scene
from trol_benchmarks.world.scene import COLOURS, SHAPES, Scene
from trol_benchmarks.world.scoring import is_right
from trol_benchmarks.world.splits import NUMBERS, PAIRS, Pair, Split, is_unseen_pair, is_unseen_text
from trol_runtime.errors import UsageError

MIXED = objects(
    "red circle", "blue star", "green cross", "green moon", at=((0.1, 0.1), (0.5, 0.2), (0.9, 0.9), (0.3, 0.6))
)
OBJECTS_FAMILIES = ("colour", "shape", "count", "position", "existence", "description")


def asked(scene: Scene, family: str, form: str | None = "plain", times: int = 300) -> list[Question]:
    """Many questions of one family."""
    rng = np.random.default_rng(0)
    questions = [ask_family(rng, scene, family, form) for _ in range(times)]
    return [question for question in questions if question is not None]


def answers(scene: Scene, family: str) -> dict[str, str]:
    """The answers of all plain questions of a family, by text."""
    return {question.text: question.answer for question in asked(scene, family)}


def share(count: int, questions: list[Question]) -> float:
    return count / len(questions)


# With 2,000 draws the standard error of a share of one half is 0.011: four of them.
DRAWS, ERROR = 2000, 0.045


# What is asked


def test_colours_are_asked_of_what_has_a_shape_of_its_own() -> None:
    found = answers(objects("red circle", "blue star", "green star"), "colour")
    assert found == {wording.format(name="circle"): "red" for wording in phrases.COLOUR}


@pytest.mark.parametrize(("text", "name"), [("CAT", "word"), ("42", "number")])
def test_the_colour_of_printed_text_is_asked(text: str, name: str) -> None:
    assert answers(printed(text, "purple"), "colour")[f"What colour is the {name}?"] == "purple"


def test_shapes_are_asked_of_what_has_a_colour_of_its_own() -> None:
    found = answers(objects("red circle", "blue star", "blue moon"), "shape")
    assert found == {wording.format(colour="red"): "circle" for wording in phrases.SHAPE}


def test_counts_are_of_all_things_of_a_shape_and_of_a_colour() -> None:
    found = answers(objects("red circle", "blue star", "red star"), "count")
    assert found["How many objects are there?"] == "3"
    assert found["Count the stars."] == "2"
    assert {answer for text, answer in found.items() if "red " in text} == {"2"}
    assert {answer for text, answer in found.items() if "moons" in text} == {"0"}


def test_printed_text_is_no_object_to_count() -> None:
    found = answers(printed("CAT", "red", beside=["red ring"]), "count")
    assert found["How many things are there?"] == "1"
    assert {answer for text, answer in found.items() if "red " in text} == {"1"}


def test_in_a_chart_the_bars_are_counted() -> None:
    assert answers(chart(red=0.5, blue=1.0, green=0.2), "count")["How many bars are there?"] == "3"


def test_places_are_compared_on_both_axes() -> None:
    found = answers(objects("red circle", "blue star", at=((0.2, 0.8), (0.7, 0.3))), "position")
    assert found["Is the red circle left or right of the blue star?"] == "left"
    assert found["Is the blue star left or right of the red circle?"] == "right"
    assert found["Is the red circle above or below the blue star?"] == "below"
    assert found["Is the blue star above or below the red circle?"] == "above"


def test_things_closer_than_0_15_on_an_axis_are_not_compared_on_it() -> None:
    found = answers(objects("red circle", "blue star", at=((0.2, 0.5), (0.7, 0.64))), "position")
    assert set(found.values()) == {"left", "right"}
    assert "position" not in possible(objects("red circle", "blue star", at=((0.5, 0.5), (0.6, 0.6))))


def test_things_that_share_their_name_are_not_compared() -> None:
    assert "position" not in possible(objects("red circle", "red circle"))
    found = answers(objects("red circle", "red circle", "blue star", "green moon"), "position")
    assert not any("red circle" in text for text in found)


@pytest.mark.parametrize(
    "scene", [MIXED, printed("CAT"), printed("CAT", beside=["red ring"]), chart(red=0.5, blue=1.0, green=0.2)]
)
def test_whether_something_is_there_is_answered_yes_as_often_as_no(scene: Scene) -> None:
    questions = asked(scene, "existence", times=DRAWS)
    assert share(sum(question.answer == "yes" for question in questions), questions) == pytest.approx(0.5, abs=ERROR)


def test_what_is_there_is_asked_with_yes_and_what_is_not_with_no() -> None:
    present = {f"{thing.colour} {thing.shape}" for thing in MIXED.things}
    for question in asked(MIXED, "existence"):
        assert (question.answer == "yes") == any(name in question.text for name in present)


def test_half_of_the_missing_things_share_a_colour_or_a_shape_with_one_that_is_there() -> None:
    seen = {"red", "blue", "green", "circle", "star", "cross", "moon"}
    missing = [
        question
        for question in asked(MIXED, "existence", times=2 * DRAWS)
        if question.answer == "no" and any(shape in question.text for shape in SHAPES)
    ]
    sharing = sum(not seen.isdisjoint(re.findall(r"\w+", question.text)) for question in missing)
    assert share(sharing, missing) == pytest.approx(0.5, abs=ERROR)


@pytest.mark.parametrize(
    ("scene", "text", "answer"),
    [
        (printed("CAT"), "Is there a word?", "yes"),
        (printed("CAT"), "Is there a number in the picture?", "no"),
        (printed("42"), "Is there a number?", "yes"),
        (printed("42"), "Is there a bar chart?", "no"),
        (chart(red=0.5, blue=1.0), "Do you see a bar chart?", "yes"),
        (chart(red=0.5, blue=1.0), "Is there a red bar?", "yes"),
        (chart(red=0.5, blue=1.0), "Is there an orange bar?", "no"),
    ],
)
def test_text_and_charts_are_asked_for_too(scene: Scene, text: str, answer: str) -> None:
    questions = {question.text: question.answer for question in asked(scene, "existence", times=DRAWS)}
    assert questions[text] == answer


def test_a_picture_with_all_kinds_of_text_is_asked_for_something_else_that_it_lacks() -> None:
    scene = Scene(LOOK, prints=(print_at("CAT", "red", 0.3), print_at("42", "blue", 0.7)))
    missing = [question.text for question in asked(scene, "existence") if question.answer == "no"]
    assert missing
    assert not any(re.search(r"\b(word|number)\b", text) for text in missing)


def test_the_tallest_bar_is_asked_by_its_colour() -> None:
    assert set(answers(chart(red=0.5, blue=1.0, green=0.2), "tallest_bar").values()) == {"blue"}


def test_bars_of_about_one_height_have_no_tallest() -> None:
    assert "tallest_bar" not in possible(chart(red=0.98, blue=1.0, green=0.2))


@pytest.mark.parametrize(("text", "family"), [("CAT", "word"), ("042", "number")])
def test_printed_text_is_answered_as_it_is_printed(text: str, family: str) -> None:
    assert set(answers(printed(text), family).values()) == {text}


def test_two_words_leave_open_which_to_read() -> None:
    scene = Scene(LOOK, prints=(print_at("CAT", "red", 0.3), print_at("DOG", "blue", 0.7), print_at("7", "red", 0.5)))
    assert "word" not in possible(scene)
    assert "number" in possible(scene)
    assert not any("word" in text for text in answers(scene, "colour"))


def test_a_description_says_it_in_the_one_way() -> None:
    assert set(answers(objects("red circle"), "description").values()) == {"There is one object: a red circle."}


@pytest.mark.parametrize(
    ("scene", "families"),
    [
        (MIXED, OBJECTS_FAMILIES),
        (printed("CAT"), ("colour", "existence", "word", "description")),
        (printed("42", beside=["red ring"]), ("colour", "shape", "count", "existence", "number", "description")),
        (chart(red=0.5, blue=1.0), ("count", "existence", "tallest_bar", "description")),
        (Scene(LOOK), ()),
    ],
)
def test_a_scene_admits_the_families_that_it_has_something_for(scene: Scene, families: tuple[str, ...]) -> None:
    assert possible(scene) == families


# Forms


def test_a_plain_question_is_one_line_and_a_short_one_has_the_official_suffix() -> None:
    plain, short = asked(MIXED, "colour", "plain")[0], asked(MIXED, "colour", "short")[0]
    assert "\n" not in plain.text
    assert short.text.removesuffix(phrases.SHORT) == plain.text
    assert short.answer == plain.answer
    assert plain.options == short.options == ()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "description"])
def test_lettered_questions_have_options_that_differ_and_the_letter_of_the_right_one(family: str) -> None:
    bars = chart(red=0.5, blue=1.0, green=0.2)
    scene = {"tallest_bar": bars, "count": bars, "word": printed("CAT"), "number": printed("427")}.get(family, MIXED)
    right = {question.text: question.answer for question in asked(scene, family, times=DRAWS)}
    for question in asked(scene, family, "letter"):
        wording, *lettered, _ = question.text.split("\n")
        assert question.text.endswith(phrases.LETTER)
        assert lettered == [f"{letter}. {option}" for letter, option in zip("ABCD", question.options, strict=False)]
        assert 2 <= len(question.options) == len(set(question.options)) <= 4
        marked = question.options["ABCD".index(question.answer)]
        assert marked == right.get(wording, marked)  # few plain ones of all that can be asked for were not drawn


def test_the_right_option_has_every_place_equally_often() -> None:
    four = [question for question in asked(MIXED, "colour", "letter", 3 * DRAWS) if len(question.options) == 4]
    places = Counter(question.answer for question in four)
    assert all(share(places[letter], four) == pytest.approx(0.25, abs=ERROR) for letter in "ABCD")


@pytest.mark.parametrize(("text", "family"), [("CAT", "word"), ("BLORK", "word"), ("427", "number"), ("7", "number")])
def test_the_other_texts_to_choose_from_are_as_long_as_the_printed_one(text: str, family: str) -> None:
    for question in asked(printed(text), family, "letter"):
        assert {len(option) for option in question.options} == {len(text)}
        assert len(text) == 1 or not any(option.startswith("0") for option in question.options)


def test_texts_altered_at_one_place_are_altered_at_the_same() -> None:
    # Otherwise the right option is what the others have in common, and no picture is needed.
    for question in asked(printed("ZEPPELIN"), "word", "letter"):  # too long to have others alike
        letters_at = [set(letters) for letters in zip(*question.options, strict=True)]
        assert sorted(map(len, letters_at)) == [1, 1, 1, 1, 1, 1, 1, len(question.options)]


@pytest.mark.parametrize("text", ["CAT", words.TEST[0]])
def test_half_of_the_time_other_words_are_of_the_same_list(text: str) -> None:
    # A word among made-up ones would be found without a picture.
    alike = next(listed for listed in (words.TRAIN, words.VALIDATION, words.TEST) if text in listed)
    questions = asked(printed(text), "word", "letter", DRAWS)
    listed = sum(set(question.options) <= set(alike) for question in questions)
    assert share(listed, questions) > 0.5 - ERROR


def test_what_people_read_has_no_unfit_option() -> None:
    options = {option for question in asked(printed("WITCH"), "word", "letter", DRAWS) for option in question.options}
    assert len(options) > 30  # so that all that differ in the first letter were among them
    assert not options & words.UNFIT


def test_forms_are_drawn_in_their_shares() -> None:
    forms = Counter(question.form for question in asked(MIXED, "colour", None, DRAWS))
    assert [forms[form] / DRAWS for form in FORMS] == pytest.approx([0.4, 0.3, 0.3], abs=ERROR)


@pytest.mark.parametrize("form", ["short", "letter"])
def test_descriptions_have_the_plain_form_only(form: str) -> None:
    assert ask_family(np.random.default_rng(0), MIXED, "description", form) is None
    assert {question.form for question in asked(MIXED, "description", None)} == {"plain"}


def test_a_family_that_the_scene_does_not_admit_has_no_question() -> None:
    assert ask_family(np.random.default_rng(0), MIXED, "word") is None


def test_an_unknown_family_or_form_is_refused_with_the_known() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(
        UsageError, match=r"^there is no family of questions 'size' .*; known are colour, shape, count, "
    ):
        ask_family(rng, MIXED, "size")
    with pytest.raises(UsageError, match=r"^there is no form of questions 'long' .*; known are plain, short, letter$"):
        ask_family(rng, MIXED, "colour", "long")


# Several questions about one picture


def sampled(split: Split, count: int) -> Iterator[tuple[Scene, list[Question]]]:
    rng = np.random.default_rng(5)
    for _ in range(count):
        scene = sample_scene(rng, split)
        yield scene, ask(rng, scene, 6)


def test_questions_about_a_picture_differ_and_are_of_all_its_families() -> None:
    questions = ask(np.random.default_rng(0), MIXED, 6)
    assert {question.family for question in questions} == set(OBJECTS_FAMILIES)
    many = ask(np.random.default_rng(0), MIXED, 40)
    assert len({question.text for question in many}) == len(many) == 40
    assert sum(question.family == "description" for question in many) == 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_more_questions_are_asked_than_wanted(count: int) -> None:
    assert len(ask(np.random.default_rng(0), MIXED, count)) == count


def test_an_empty_picture_has_no_questions() -> None:
    assert ask(np.random.default_rng(0), Scene(LOOK), 5) == []


def test_equal_generators_ask_the_same() -> None:
    assert ask(np.random.default_rng(3), MIXED, 8) == ask(np.random.default_rng(3), MIXED, 8)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_of_every_question_is_right(split: Split) -> None:
    assert all(is_right(question, question.answer) for _, questions in sampled(split, 200) for question in questions)


def test_counts_over_many_pictures_are_balanced_enough() -> None:
    questions = [question for _, asked in sampled("train", 2000) for question in asked]
    counts = Counter(question.answer for question in questions if question.family == "count" and not question.options)
    # A seventh each if scenes allowed; but one in twelve has six things, and one in five is a chart of 3 to 5 bars.
    assert all(0.04 < counts[str(count)] / counts.total() < 0.25 for count in range(7))


def test_questions_about_training_pictures_name_nothing_kept_from_training() -> None:
    unseen = {f"{colour} {shape}" for colour, shape in PAIRS if is_unseen_pair(colour, shape)}
    for _, questions in sampled("train", 500):
        for question in questions:
            assert not any(name in question.text for name in unseen)
            assert not any(
                is_unseen_text(option) for option in question.options if question.family in ("word", "number")
            )


def pairs_of_options(question: Question) -> set[Pair]:
    """What the options of a question of colour or shape make with the name it asks about."""
    asked_about = question.text.partition("\n")[0]
    if question.family == "shape":
        return {(colour, option) for colour in COLOURS if colour in asked_about for option in question.options}
    return {(option, shape) for shape in SHAPES if shape in asked_about for option in question.options}


@pytest.mark.parametrize(("split", "named"), [("train", False), ("test", True)])
def test_options_make_pairs_kept_from_training_in_the_test_alone(split: Split, named: bool) -> None:
    # In training they would always be wrong.
    asked = [question for _, questions in sampled(split, 500) for question in questions]
    pairs = [pairs_of_options(question) for question in asked if question.family in ("colour", "shape")]
    assert any(is_unseen_pair(*pair) for found in pairs for pair in found) == named


def test_questions_about_test_pictures_name_pairs_kept_from_training() -> None:
    unseen = {f"{colour} {shape}" for colour, shape in PAIRS if is_unseen_pair(colour, shape)}
    asked = [question for _, questions in sampled("test", 500) for question in questions]
    denied = [question for question in asked if question.family == "existence" and question.answer == "no"]
    assert any(name in question.text for question in denied for name in unseen)


@pytest.mark.parametrize("text", [*words.TRAIN[::7], *NUMBERS[::37], "BLORK", "ZOD"])
def test_every_text_to_read_has_a_plausible_other(text: str) -> None:
    scene = printed(text)
    for question in asked(scene, "number" if text.isdecimal() else "word", "letter", 20):
        assert len(question.options) >= 2


# Vocabulary


def vocabulary() -> set[str]:
    return set(re.findall(r"\w+", " ".join(vocabulary_texts())))


def test_the_vocabulary_holds_every_word_but_printed_text() -> None:
    known = vocabulary()
    for split in ("train", "test"):
        for scene, questions in sampled(split, 300):
            for question in questions:
                texts = {text.text for text in scene.prints}
                texts.update(question.options if question.family in ("word", "number") else ())
                assert set(re.findall(r"\w+", f"{question.text} {question.answer}")) <= known | texts


def test_the_vocabulary_is_modest_and_capitals_in_a_row_are_left_to_printed_text() -> None:
    assert len(vocabulary()) < 200
    assert not any(re.search(r"[A-Z]{2}", text) for text in vocabulary_texts())
