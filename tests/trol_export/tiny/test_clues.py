"""What the words of a question refer to: tokens that end a name, and tokens of options, with what is true of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from short_recipe import short_recipe
from trol_benchmarks.world.description import describe
from trol_benchmarks.world.questions import Question
from trol_benchmarks.world.scene import COLOURS, Bar, Chart, Look, Print, Scene, Thing
from trol_export.tiny.clues import RIGHT_CHANNEL, ClueFinder, ClueHead, Clues
from trol_export.tiny.lessons import Lessons
from trol_export.tiny.packing import Batch, Room
from trol_export.tiny.patch_labels import LABELS
from trol_export.tiny.tokenizer import SPACE

WHITE = (255, 255, 255)
LOOK = Look(168, (WHITE, WHITE))
ROOM = Room(prompts=200, answers=20)


def thing(name: str, x: float, y: float) -> Thing:
    colour, shape = name.split()
    return Thing(shape, colour, COLOURS[colour], x, y, 0.2)


RED_STAR, RED_RING, BLUE_STAR = thing("red star", 0.2, 0.8), thing("red ring", 0.5, 0.2), thing("blue star", 0.8, 0.5)
PRINT = Print("CAB", "green", COLOURS["green"], "dejavu-sans", 0.5, 0.5, 0.15, 0.0)
SCENE = Scene(LOOK, (RED_STAR, RED_RING, BLUE_STAR), (PRINT,))
CHART = Scene(
    LOOK,
    chart=Chart(
        (Bar("red", COLOURS["red"], 0.3), Bar("blue", COLOURS["blue"], 0.8), Bar("green", COLOURS["green"], 0.5)),
        (0.1, 0.1, 0.9, 0.9),
        (0, 0, 0),
    ),
)

OF_RED_STAR = {"red", "star", "thing 0", "thing 2 from above", "2 of its colour", "2 of its shape"}
OF_RED_RING = {"red", "ring", "thing 1", "thing 0 from above", "2 of its colour", "1 of its shape"}
OF_BLUE_STAR = {"blue", "star", "thing 2", "thing 1 from above", "1 of its colour", "2 of its shape"}
OF_PRINT = {"green", "C", "A", "B", "character 0", "character 1", "character 2"}
OF_BARS = [{"red", "bar 0"}, {"blue", "bar 1", "tallest bar"}, {"green", "bar 2"}]


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(short_recipe())


@pytest.fixture(scope="module")
def finder(lessons: Lessons) -> ClueFinder:
    return ClueFinder(vocabulary(lessons))


def vocabulary(lessons: Lessons) -> dict[str, int]:
    found: dict[str, int] = lessons.tokenizer_json["model"]["vocab"]
    return found


def plain(text: str) -> Question:
    return Question("existence", "plain", text, "yes")


def lettered(answer: str, *options: str) -> Question:
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False)]
    return Question("colour", "letter", "\n".join(["Which?", *lines]) + "\nAnswer.", answer, options)


def packed(lessons: Lessons, *rows: Sequence[Question]) -> Batch:
    return lessons.packer.pack(rows, ROOM)


def named(lessons: Lessons, finder: ClueFinder, scene: Scene, text: str) -> list[tuple[str, set[str]]]:
    """The words of a question that have labels, in order, with these."""
    batch = packed(lessons, [plain(text)])
    clues = finder.find(batch, [scene], [[plain(text)]])
    return [
        (word_at(lessons, batch, token), {LABELS[number] for number in has.nonzero().flatten().tolist()})
        for token, has in zip(clues.names.tolist(), clues.labels, strict=True)
    ]


def word_at(lessons: Lessons, batch: Batch, token: int) -> str:
    words = {number: piece for piece, number in vocabulary(lessons).items()}
    return words[int(batch.ids.reshape(-1)[token])].removeprefix(SPACE)


def id_of(lessons: Lessons, word: str) -> int:
    return vocabulary(lessons)[SPACE + word]


# Names


def test_a_colour_names_everything_of_the_colour_and_a_noun_behind_it_what_is_both(
    lessons: Lessons, finder: ClueFinder
) -> None:
    assert named(lessons, finder, SCENE, "Is there a red star?") == [
        ("red", OF_RED_STAR | OF_RED_RING),
        ("star", OF_RED_STAR),
    ]


def test_a_noun_alone_names_everything_it_can_be_said_of(lessons: Lessons, finder: ClueFinder) -> None:
    things = OF_RED_STAR | OF_RED_RING | OF_BLUE_STAR
    assert named(lessons, finder, SCENE, "How many stars are there?") == [("stars", OF_RED_STAR | OF_BLUE_STAR)]
    for noun in ("things", "objects", "shapes"):
        assert named(lessons, finder, SCENE, f"Count the {noun}.") == [(noun, things)]
    assert named(lessons, finder, SCENE, "What does the word say?") == [("word", OF_PRINT)]
    assert named(lessons, finder, CHART, "Count the bars.") == [("bars", set().union(*OF_BARS))]


def test_a_colour_belongs_to_the_noun_next_to_it_alone(lessons: Lessons, finder: ClueFinder) -> None:
    assert named(lessons, finder, SCENE, "Is the red ring above or below the star?") == [
        ("red", OF_RED_STAR | OF_RED_RING),
        ("ring", OF_RED_RING),
        ("star", OF_RED_STAR | OF_BLUE_STAR),
    ]


def test_prints_and_bars_have_colours_too(lessons: Lessons, finder: ClueFinder) -> None:
    assert named(lessons, finder, SCENE, "Which shape is green?") == [
        ("shape", OF_RED_STAR | OF_RED_RING | OF_BLUE_STAR),
        ("green", OF_PRINT),
    ]
    assert named(lessons, finder, CHART, "Is there a blue bar?") == [("blue", OF_BARS[1]), ("bar", OF_BARS[1])]


def test_what_is_not_there_has_no_label(lessons: Lessons, finder: ClueFinder) -> None:
    assert named(lessons, finder, SCENE, "Is there a blue ring?") == [("blue", OF_BLUE_STAR), ("ring", set())]
    assert named(lessons, finder, SCENE, "Is there a number?") == [("number", set())]


def test_other_words_name_nothing(lessons: Lessons, finder: ClueFinder) -> None:
    batch = packed(lessons, [plain("Describe what you see.")])
    clues = finder.find(batch, [SCENE], [[plain("Describe what you see.")]])
    assert clues.names.shape == (0,)
    assert clues.labels.shape == (0, len(LABELS))


def test_in_a_description_the_article_before_a_thing_is_told_which_one_comes_next(
    lessons: Lessons, finder: ClueFinder
) -> None:
    question = Question("description", "plain", "What do you see?", describe(SCENE))
    batch = lessons.packer.pack([[question]], Room(prompts=40, answers=40))
    clues = finder.find(batch, [SCENE], [[question]])
    assert [word_at(lessons, batch, token) for token in clues.names.tolist()] == ["a", "a", "a"]
    following = batch.targets.reshape(-1)[clues.names].tolist()
    assert following == [id_of(lessons, colour) for colour in ("red", "red", "blue")]
    found = [{LABELS[number] for number in has.nonzero().flatten().tolist()} for has in clues.labels]
    assert found == [OF_RED_STAR, OF_RED_RING, OF_BLUE_STAR]


# Options


def options(lessons: Lessons, finder: ClueFinder, question: Question) -> list[tuple[str, bool]]:
    batch = packed(lessons, [question])
    clues = finder.find(batch, [SCENE], [[question]])
    tokens, right = clues.options.tolist(), clues.right.tolist()
    return [(word_at(lessons, batch, token), is_right) for token, is_right in zip(tokens, right, strict=True)]


def test_the_right_option_is_right_and_the_others_are_not(lessons: Lessons, finder: ClueFinder) -> None:
    found = options(lessons, finder, lettered("B", "red", "blue", "green"))
    assert found == [("red", False), ("blue", True), ("green", False)]
    assert options(lessons, finder, lettered("A", "3", "5")) == [("3", True), ("5", False)]


def test_an_option_of_several_characters_is_right_up_to_where_it_goes_wrong(
    lessons: Lessons, finder: ClueFinder
) -> None:
    found = options(lessons, finder, lettered("A", "CAT", "CAB", "BAT"))
    spelled = [("C", True), ("A", True), ("T", True)]
    assert found == [*spelled, *spelled[:2], ("B", False), *((letter, False) for letter in "BAT")]


def test_every_token_of_an_option_is_told_its_letter(lessons: Lessons, finder: ClueFinder) -> None:
    question = lettered("C", "CAT", "DOG", "5", "red")
    clues = finder.find(packed(lessons, [question]), [SCENE], [[question]])
    assert clues.letters.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]


def test_a_question_without_options_has_none(lessons: Lessons, finder: ClueFinder) -> None:
    assert options(lessons, finder, plain("Is there a red star?")) == []


# Batches


def test_clues_of_every_row_and_question_stand_at_their_tokens(lessons: Lessons, finder: ClueFinder) -> None:
    rows = [[plain("Is there a red star?"), lettered("B", "red", "blue")], [], [plain("Count the stars.")]]
    batch = packed(lessons, *rows)
    clues = finder.find(batch, [SCENE, SCENE, SCENE], rows)
    tokens = batch.ids.shape[1]
    found = [(token // tokens, word_at(lessons, batch, token)) for token in clues.names.tolist()]
    assert found == [(0, "red"), (0, "star"), (0, "red"), (0, "blue"), (2, "stars")]
    assert batch.questions.reshape(-1)[clues.names].tolist() == [0, 0, 1, 1, 0]
    assert batch.questions.reshape(-1)[clues.options].tolist() == [1, 1]
    assert max(clues.names % tokens) < batch.prompt_tokens


def test_a_question_that_had_no_room_has_no_clues(lessons: Lessons, finder: ClueFinder) -> None:
    asked = [plain("Is there a red star?")] * 2
    prompt = len(lessons.packer.conversation(asked[0]).prompt)
    batch = lessons.packer.pack([asked], Room(prompts=prompt, answers=20))
    assert len(finder.find(batch, [SCENE], [asked]).names) == 2


def test_those_of_options_can_be_had_alone(lessons: Lessons, finder: ClueFinder) -> None:
    question = lettered("B", "red", "blue")
    clues = finder.find(packed(lessons, [question]), [SCENE], [[question]])
    alone = clues.of_options()
    assert len(clues.names) == 2
    assert (len(alone.names), len(alone.labels)) == (0, 0)
    assert alone.options.equal(clues.options)


# Their loss


def clues(names: int, options: int) -> Clues:
    return Clues(
        names=torch.arange(names),
        labels=torch.zeros(names, len(LABELS), dtype=torch.bool),
        options=torch.arange(options),
        right=torch.ones(options, dtype=torch.bool),
        letters=torch.zeros(options, dtype=torch.int64),
    )


def clue_head() -> ClueHead:
    return ClueHead(8, letters=[5, 6, 7, 8])


def outputs_with(right_channel: float) -> list[torch.Tensor]:
    """Of four layers, five tokens that all say this, after normalisation, where options say that they are right."""
    others = ((8 - right_channel**2) / 7) ** 0.5
    x = torch.full((5, 8), others)
    x[:, RIGHT_CHANNEL] = right_channel
    return [x] * 4


@pytest.mark.parametrize(("layers", "of_names", "of_options"), [(4, 1, 2), (2, 0, 0), (8, 3, 5)])
def test_names_are_read_halfway_through_the_layers_and_options_behind_them(
    layers: int, of_names: int, of_options: int
) -> None:
    head = clue_head()
    for layer, found in ((of_names, clues(names=2, options=0)), (of_options, clues(names=0, options=2))):
        outputs = [torch.randn(5, 8, requires_grad=True) for _ in range(layers)]
        head(outputs, found, torch.randn(9, 8)).backward()
        assert [x.grad is not None for x in outputs] == [number == layer for number in range(layers)]


def test_a_head_that_knows_nothing_loses_a_coins_entropy_per_label_and_for_an_option_that_and_a_letters() -> None:
    head, words = clue_head(), torch.zeros(9, 8)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    outputs = outputs_with(right_channel=0.75)
    coin, letter = torch.log(torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(head(outputs, clues(names=3, options=0), words), len(LABELS) * coin)
    torch.testing.assert_close(head(outputs, clues(names=0, options=3), words), coin + letter)
    torch.testing.assert_close(head(outputs, clues(names=3, options=3), words), (len(LABELS) + 1) * coin + letter)


def test_an_option_says_that_it_is_right_and_nothing_where_it_is_not() -> None:
    head, words = clue_head(), torch.zeros(9, 8)
    of_letter = torch.log(torch.tensor(4.0))
    right = clues(names=0, options=3)
    wrong = right._replace(right=~right.right)
    loud, silent = outputs_with(2.0), outputs_with(0.0)
    assert head(loud, right, words) - of_letter < 0.01
    assert head(silent, wrong, words) - of_letter < 0.05
    assert head(loud, wrong, words) - of_letter > 4
    assert head(silent, right, words) - of_letter > 2


def test_an_option_says_its_letter_as_the_answer_would() -> None:
    """Row 5 of the words is the letter A."""
    words = torch.zeros(9, 8)
    words[5] = outputs_with(0.75)[0][0]
    found = clues(names=0, options=3)
    outputs = outputs_with(0.75)
    of_a, of_b = (clue_head()(outputs, found._replace(letters=found.letters + place), words) for place in (0, 1))
    assert of_b - of_a == pytest.approx(8)  # the logit of A, 0 for the others


def test_without_clues_there_is_nothing_to_lose() -> None:
    assert clue_head()(outputs_with(0.0), clues(names=0, options=0), torch.zeros(9, 8)) == 0
