import re
from string import Formatter

import pytest

from trol_benchmarks.world import phrases

WORDINGS = {
    "COLOUR": {"name"},
    "SHAPE": {"colour"},
    "COUNT": {"names"},
    "LEFT_OR_RIGHT": {"first", "second"},
    "ABOVE_OR_BELOW": {"first", "second"},
    "EXISTENCE": {"one"},
    "TALLEST_BAR": set(),
    "NUMBER": set(),
    "WORD": set(),
    "DESCRIPTION": set(),
}


@pytest.mark.parametrize(("name", "placeholders"), WORDINGS.items())
def test_everything_is_asked_in_four_ways_or_more_each_with_its_placeholders(name: str, placeholders: set[str]) -> None:
    wordings = getattr(phrases, name)
    assert len(set(wordings)) == len(wordings) >= 4
    for wording in wordings:
        assert {field for _, field, _, _ in Formatter().parse(wording) if field} == placeholders
        assert wording[0].isupper()
        assert wording[-1] in "?."


def test_no_wording_asks_two_things() -> None:
    wordings = [wording for name in WORDINGS for wording in getattr(phrases, name)]
    assert len(set(wordings)) == len(wordings)


def test_most_wordings_spell_colour_and_some_color() -> None:
    wordings = " ".join(phrases.COLOUR + phrases.TALLEST_BAR)
    assert len(re.findall(r"\bcolour\b", wordings)) > 2 * len(re.findall(r"\bcolor\b", wordings)) > 0


def test_the_suffixes_are_those_of_the_official_benchmarks() -> None:
    assert phrases.SHORT == "\nAnswer the question using a single word or phrase."
    assert phrases.LETTER == "\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("name", "named"), [("red star", "a red star"), ("orange star", "an orange star"), ("word", "a word")]
)
def test_an_article_goes_with_the_sound_of_the_name(name: str, named: str) -> None:
    assert phrases.with_article(name) == named


@pytest.mark.parametrize(("noun", "plural"), [("star", "stars"), ("cross", "crosses"), ("thing", "things")])
def test_a_plural_ends_as_english_has_it(noun: str, plural: str) -> None:
    assert phrases.plural(noun) == plural
