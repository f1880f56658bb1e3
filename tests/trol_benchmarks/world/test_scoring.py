import pytest
from hypothesis import given
from hypothesis import strategies as st

from trol_benchmarks.world.questions import Question
from trol_benchmarks.world.scoring import is_right, normalised

COLOUR = Question("colour", "plain", "What colour is the star?", "red")
NUMBER = Question("number", "plain", "Which number is printed?", "42")
WORD = Question("word", "short", "Read the word.", "CAT")
LETTER = Question("colour", "letter", "What colour is the star?\nA. blue\nB. red", "B", ("blue", "red"))
DESCRIPTION = Question(
    "description", "plain", "What do you see?", "There are two objects: a red circle and a blue star."
)


@pytest.mark.parametrize("answer", ["red", "Red", " red\n", "red.", "RED. "])
def test_closed_answers_may_differ_in_case_white_space_and_a_full_stop(answer: str) -> None:
    assert is_right(COLOUR, answer)


@pytest.mark.parametrize("answer", ["blue", "dark red", "red star", "reddish", "red, blue", "."])
def test_closed_answers_that_say_anything_else_are_wrong(answer: str) -> None:
    assert not is_right(COLOUR, answer)


@pytest.mark.parametrize(
    ("answer", "right"), [("42", True), ("42.", True), ("042", False), ("4 2", False), ("24", False)]
)
def test_numbers_are_compared_digit_by_digit(answer: str, right: bool) -> None:
    assert is_right(NUMBER, answer) is right


@pytest.mark.parametrize(("answer", "right"), [("CAT", True), ("cat", True), ("CATS", False), ("C A T", False)])
def test_words_are_compared_letter_by_letter_but_for_case(answer: str, right: bool) -> None:
    assert is_right(WORD, answer) is right


@pytest.mark.parametrize("answer", ["B", " B\n", "B.", "B. red", "B: red", "B) red"])
def test_a_letter_may_be_alone_or_before_its_option(answer: str) -> None:
    assert is_right(LETTER, answer)


@pytest.mark.parametrize("answer", ["A", "A. red", "b", "red", "Blue", "B red", "BLUE", "AB", "The answer is B."])
def test_anything_else_is_no_letter(answer: str) -> None:
    assert not is_right(LETTER, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "There are two objects: a red circle and a blue star.",
        "There are two objects: a blue star and a red circle.",
        "a red circle, a blue star",
        "I see one blue star. There is also a red circle!",
    ],
)
def test_a_description_is_right_in_any_order_and_wording_that_names_everything(answer: str) -> None:
    assert is_right(DESCRIPTION, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "There is one object: a red circle.",
        "There are two objects: a red star and a blue circle.",
        "There are three objects: a red circle, a blue star and a blue star.",
        "There are two objects: a circle and a star.",
        "There are three objects: a red circle and a blue star.",
    ],
)
def test_a_description_that_misses_adds_or_confuses_something_is_wrong(answer: str) -> None:
    assert not is_right(DESCRIPTION, answer)


@pytest.mark.parametrize("question", [COLOUR, NUMBER, WORD, LETTER, DESCRIPTION])
@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_an_empty_answer_is_wrong(question: Question, answer: str) -> None:
    assert not is_right(question, answer)


@given(st.text())
def test_no_answer_is_an_error(answer: str) -> None:
    for question in (COLOUR, NUMBER, WORD, LETTER, DESCRIPTION):
        assert isinstance(is_right(question, answer), bool)


def test_a_normalised_answer_has_neither_case_nor_a_frame() -> None:
    assert normalised("  Left. \n") == "left"
