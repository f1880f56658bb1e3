"""Questions about a scene of the drawn world, with their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np

from trol_benchmarks.world import phrases, words
from trol_benchmarks.world.chance import one_of, some_of, whole_between
from trol_benchmarks.world.description import describe, grammar_texts, print_kind
from trol_benchmarks.world.phrases import plural, with_article
from trol_benchmarks.world.scene import COLOURS, SHAPES, Bar, Print, Scene, Thing, require_known
from trol_benchmarks.world.splits import NUMBERS, PAIRS, Pair, combination, is_unseen_pair, is_unseen_text

FAMILIES = ("colour", "shape", "count", "position", "existence", "tallest_bar", "number", "word", "description")
READ = ("number", "word")  # the families that read
# Those that ask about what is shown, and have few answers.
CLOSED = tuple(family for family in FAMILIES if family not in (*READ, "description"))
FORMS = ("plain", "short", "letter")

FORM_SHARES = (0.4, 0.3, 0.3)  # of plain, short, letter
_APART = 0.15  # of the side: things nearer to each other on an axis are not compared on it
_TALLER = 0.05  # of the chart's height: how far the tallest bar stands out at least
# How often a count is asked for where a scene has it: every scene lacks some shapes, few have six things.
_COUNT_WEIGHTS = (0.3, 0.35, 0.9, 1.5, 2.0, 4.0, 8.0)
_OTHER_SORT_SHARE = 0.1  # of what a picture is asked for and lacks: of any sort, not of a sort that it does show

_LETTERS = "ABCD"
_NOUNS = ("object", "shape", "thing")
_VOWELS, _CONSONANTS, _DIGITS = "AEIOU", "BCDFGHJKLMNPQRSTVWXYZ", "0123456789"
# What can be asked for, by sort.
_NAMES = {
    "thing": tuple(f"{colour} {shape}" for colour, shape in PAIRS),
    "bar": tuple(f"{colour} bar" for colour in COLOURS),
    "print": ("word", "number"),
    "chart": ("bar chart",),
}
_UNSEEN_NAMES = frozenset(f"{colour} {shape}" for colour, shape in PAIRS if is_unseen_pair(colour, shape))

_MADE_UP_TRIES = 12  # to make up three words of a given length

_T = TypeVar("_T")


@dataclass(frozen=True)
class Question:
    """A question as a user types it, and the answer due.

    family:  one of FAMILIES
    form:    one of FORMS: nothing added; the suffix for short answers; lettered options and their suffix
    answer:  what the model is to say: lower case, text as printed, or the letter of the right option
    options: of the letter form, in their order
    """

    family: str
    form: str
    text: str
    answer: str
    options: tuple[str, ...] = ()


def ask(
    rng: np.random.Generator, scene: Scene, count: int, form_shares: Sequence[float] = FORM_SHARES
) -> list[Question]:
    """Up to `count` different questions, of all families possible in turn; at most one description.

    About a scene of the train split they name no pair, word or number that training is not to see, and no option makes
    such a pair with what the question names.

    form_shares: how likely each of FORMS is
    """
    questions: dict[str, Question] = {}
    families: Sequence[str] = possible(scene)
    while families and len(questions) < count:
        before = len(questions)
        for family in _shuffled(rng, families)[: count - before]:
            question = ask_family(rng, scene, family, form_shares=form_shares)
            if question is not None:
                questions.setdefault(question.text, question)
        if len(questions) == before:
            break  # a plain scene has little to ask about
        families = [family for family in families if family != "description"]
    return list(questions.values())


def possible(scene: Scene) -> tuple[str, ...]:
    """The families with at least one question about the scene."""
    return tuple(family for family in FAMILIES if _SUBJECTS[family](scene))


def ask_family(
    rng: np.random.Generator,
    scene: Scene,
    family: str,
    form: str | None = None,
    *,
    form_shares: Sequence[float] = FORM_SHARES,
) -> Question | None:
    """A question of the family, in a form drawn at random unless given; None where there is none of the kind.

    Descriptions have the plain form only. Raises UsageError for an unknown family or form.
    """
    require_known("family of questions", family, FAMILIES)
    if form is not None:
        require_known("form of questions", form, FORMS)
    if not _SUBJECTS[family](scene):
        return None
    if family == "description":
        text = one_of(rng, phrases.DESCRIPTION)
        return Question(family, "plain", text, describe(scene)) if form in (None, "plain") else None
    return _in_form(rng, family, form or FORMS[_drawn(rng, form_shares)], _ASK[family](rng, scene))


def vocabulary_texts() -> list[str]:
    """Texts that together hold every word of questions, options, answers and descriptions, but no printed text."""
    coloured = [f"{colour} {plural(noun)}" for colour in COLOURS for noun in _NOUNS]
    counted = [*coloured, *(plural(noun) for noun in (*_NOUNS, *SHAPES, "bar"))]
    things = _NAMES["thing"]
    wordings = [
        *(wording.format(name=name) for wording in phrases.COLOUR for name in (*SHAPES, "word", "number")),
        *(wording.format(colour=colour) for wording in phrases.SHAPE for colour in COLOURS),
        *(wording.format(names=names) for wording in phrases.COUNT for names in counted),
        *(wording.format(first=name, second=name) for wording in phrases.LEFT_OR_RIGHT for name in things),
        *(wording.format(first=name, second=name) for wording in phrases.ABOVE_OR_BELOW for name in things),
        *(
            wording.format(one=with_article(name))
            for wording in phrases.EXISTENCE
            for names in _NAMES.values()
            for name in names
        ),
        *(*phrases.TALLEST_BAR, *phrases.NUMBER, *phrases.WORD, *phrases.DESCRIPTION),
    ]
    answers = [*COLOURS, *SHAPES, *_DIGITS, "yes", "no", "left", "right", "above", "below", *_LETTERS]
    options = [f"\n{letter}. {answer}" for letter in _LETTERS for answer in answers]
    return [*wordings, *answers, *options, phrases.SHORT, phrases.LETTER, *grammar_texts()]


@dataclass(frozen=True)
class _Asked:
    """A question that has no form yet; as options, the wrong answers are taken in their order."""

    text: str
    answer: str
    wrong: Sequence[str]


def _in_form(rng: np.random.Generator, family: str, form: str, asked: _Asked) -> Question:
    if form == "plain":
        return Question(family, form, asked.text, asked.answer)
    if form == "short":
        return Question(family, form, asked.text + phrases.SHORT, asked.answer)
    most_wrong = min(len(asked.wrong), len(_LETTERS) - 1)
    options = _shuffled(rng, [asked.answer, *asked.wrong[: whole_between(rng, 1, most_wrong)]])
    lettered = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    text = "\n".join([asked.text, *lettered]) + phrases.LETTER
    return Question(family, form, text, _LETTERS[options.index(asked.answer)], tuple(options))


# What each family can ask about in a scene.


def _coloured(scene: Scene) -> list[tuple[str, str]]:
    """Name and colour of every thing that is the only one of its shape, of the only word and of the only number."""
    things = [(thing.shape, thing.colour) for thing in _only_ones(scene.things, lambda thing: thing.shape)]
    return things + [(print_kind(text), text.colour) for text in _only_ones(scene.prints, print_kind)]


def _shaped(scene: Scene) -> list[Thing]:
    """The things that are the only ones of their colour."""
    return _only_ones(scene.things, lambda thing: thing.colour)


def _counted(scene: Scene) -> list[tuple[str, int]]:
    """What can be counted, and how many there are; "" stands for all things."""
    if scene.chart is not None:
        return [("bar", len(scene.chart.bars))]
    if not scene.things:
        return []
    seen = Counter(name for thing in scene.things for name in (thing.colour, thing.shape))
    return [("", len(scene.things)), *((name, seen[name]) for name in (*COLOURS, *SHAPES))]


def _compared(scene: Scene) -> list[tuple[Thing, Thing, bool]]:
    """Pairs of things with a name of their own, and whether they are compared sideways rather than in height."""
    found = []
    for first, second in permutations(_only_ones(scene.things, lambda thing: thing.name), 2):
        if abs(first.x - second.x) >= _APART:
            found.append((first, second, True))
        if abs(first.y - second.y) >= _APART:
            found.append((first, second, False))
    return found


def _present(scene: Scene) -> list[tuple[str, str]]:
    """Sort and name of all that is there, once each."""
    names = {
        "thing": [thing.name for thing in scene.things],
        "bar": [f"{bar.colour} bar" for bar in (scene.chart.bars if scene.chart else ())],
        "print": [print_kind(text) for text in scene.prints],
        "chart": ["bar chart"] if scene.chart else [],
    }
    return list(dict.fromkeys((sort, name) for sort, named in names.items() for name in named))


def _tallest(scene: Scene) -> list[Bar]:
    """The one bar that stands out, if one does."""
    bars = sorted(scene.chart.bars, key=lambda bar: bar.height) if scene.chart else []
    return bars[-1:] if len(bars) > 1 and bars[-1].height - bars[-2].height >= _TALLER else []


def _printed_number(scene: Scene) -> list[Print]:
    return [text for text in _only_ones(scene.prints, print_kind) if text.is_number]


def _printed_word(scene: Scene) -> list[Print]:
    return [text for text in _only_ones(scene.prints, print_kind) if not text.is_number]


_SUBJECTS: dict[str, Callable[[Scene], Sequence[object]]] = {
    "colour": _coloured,
    "shape": _shaped,
    "count": _counted,
    "position": _compared,
    "existence": _present,
    "tallest_bar": _tallest,
    "number": _printed_number,
    "word": _printed_word,
    "description": _present,
}


# How each closed family asks about a scene that has a subject for it.


def _ask_colour(rng: np.random.Generator, scene: Scene) -> _Asked:
    name, colour = one_of(rng, _coloured(scene))
    text = one_of(rng, phrases.COLOUR).format(name=name)
    wrong = _others(rng, colour, _colours(scene), COLOURS)
    return _Asked(text, colour, _nameable(scene, wrong, lambda other: (other, name)))


def _ask_shape(rng: np.random.Generator, scene: Scene) -> _Asked:
    thing = one_of(rng, _shaped(scene))
    text = one_of(rng, phrases.SHAPE).format(colour=thing.colour)
    wrong = _others(rng, thing.shape, (thing.shape for thing in scene.things), SHAPES)
    return _Asked(text, thing.shape, _nameable(scene, wrong, lambda other: (thing.colour, other)))


def _ask_count(rng: np.random.Generator, scene: Scene) -> _Asked:
    counted = _counted(scene)
    most = len(_COUNT_WEIGHTS) - 1
    counts = sorted({count for _, count in counted})
    count = counts[_drawn(rng, [_COUNT_WEIGHTS[min(count, most)] for count in counts])]
    name = one_of(rng, [name for name, times in counted if times == count])
    noun = one_of(rng, _NOUNS)
    names = f"{name} {plural(noun)}" if name in COLOURS else plural(name or noun)
    wrong = _shuffled(rng, [str(other) for other in range(max(most, count) + 1) if other != count])
    return _Asked(one_of(rng, phrases.COUNT).format(names=names), str(count), wrong)


def _ask_position(rng: np.random.Generator, scene: Scene) -> _Asked:
    compared = _compared(scene)
    axis = one_of(rng, sorted({sideways for _, _, sideways in compared}))
    first, second, sideways = one_of(rng, [subject for subject in compared if subject[2] == axis])
    if sideways:
        wordings, places, is_first = phrases.LEFT_OR_RIGHT, ("left", "right"), first.x < second.x
    else:
        wordings, places, is_first = phrases.ABOVE_OR_BELOW, ("above", "below"), first.y < second.y
    answer, wrong = places if is_first else places[::-1]
    return _Asked(one_of(rng, wordings).format(first=first.name, second=second.name), answer, [wrong])


def _ask_existence(rng: np.random.Generator, scene: Scene) -> _Asked:
    # The sort comes before the answer, and mostly stays: otherwise most words asked for would be there.
    sort, name = one_of(rng, _present(scene))
    answer, wrong = _shuffled(rng, ("yes", "no"))
    if answer == "no":
        name = _missing(rng, scene, one_of(rng, list(_NAMES)) if rng.random() < _OTHER_SORT_SHARE else sort)
    return _Asked(one_of(rng, phrases.EXISTENCE).format(one=with_article(name)), answer, [wrong])


def _missing(rng: np.random.Generator, scene: Scene, sort: str) -> str:
    """What is not in the picture: half of the things share a colour or a shape with something that is."""
    left_out = {name for _, name in _present(scene)}.union(_UNSEEN_NAMES if _is_for_training(scene) else ())
    seen = {*_colours(scene), *(thing.shape for thing in scene.things)}
    near: list[str] = []
    far: list[str] = []
    for name in _NAMES[sort]:
        if name not in left_out:
            (far if seen.isdisjoint(name.split()) else near).append(name)
    if not near and not far:  # the picture has all of the sort: a chart, or both a word and a number
        return _missing(rng, scene, one_of(rng, list(_NAMES)))
    return one_of(rng, near if near and (not far or rng.random() < 0.5) else far)


def _ask_tallest(rng: np.random.Generator, scene: Scene) -> _Asked:
    (bar,) = _tallest(scene)
    return _Asked(one_of(rng, phrases.TALLEST_BAR), bar.colour, _others(rng, bar.colour, _colours(scene), COLOURS))


def _ask_number(rng: np.random.Generator, scene: Scene) -> _Asked:
    (number,) = _printed_number(scene)
    return _Asked(one_of(rng, phrases.NUMBER), number.text, _other_texts(rng, scene, number.text))


def _ask_word(rng: np.random.Generator, scene: Scene) -> _Asked:
    (word,) = _printed_word(scene)
    return _Asked(one_of(rng, phrases.WORD), word.text, _other_texts(rng, scene, word.text))


_ASK: dict[str, Callable[[np.random.Generator, Scene], _Asked]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "count": _ask_count,
    "position": _ask_position,
    "existence": _ask_existence,
    "tallest_bar": _ask_tallest,
    "number": _ask_number,
    "word": _ask_word,
}


def _colours(scene: Scene) -> set[str]:
    """The colours of things, prints and bars."""
    bars = scene.chart.bars if scene.chart else ()
    return {item.colour for items in (scene.things, scene.prints, bars) for item in items}


def _is_for_training(scene: Scene) -> bool:
    return combination(scene).split == "train"


def _only_ones(items: Sequence[_T], name: Callable[[_T], str]) -> list[_T]:
    """The items that share their name with no other."""
    times = Counter(map(name, items))
    return [item for item in items if times[name(item)] == 1]


# Wrong answers.


def _others(rng: np.random.Generator, right: str, seen: Iterable[str], known: Iterable[str]) -> list[str]:
    """First what else the picture shows, then everything else."""
    order = [*_shuffled(rng, sorted(set(seen))), *_shuffled(rng, list(known))]
    return [name for name in dict.fromkeys(order) if name != right]


def _nameable(scene: Scene, others: list[str], pair: Callable[[str], Pair]) -> list[str]:
    """Without those that would say in training that a pair kept from it is wrong; pair: what another one makes."""
    return [other for other in others if not (_is_for_training(scene) and is_unseen_pair(*pair(other)))]


def _other_texts(rng: np.random.Generator, scene: Scene, text: str) -> list[str]:
    """At most three texts of the same length: altered at one place, the same for all, or altogether others.

    Texts altered at different places would tell the right one: it is what they have in common. Whoever knows the
    world's words finds a listed one among altered ones without a look at the picture, so reading is judged by answers
    that are typed ("seen_typed" of a report).
    """
    others = _altered(rng, text) if rng.random() < 0.5 else _alike(rng, text) or _altered(rng, text)
    if _is_for_training(scene):
        others = [other for other in others if not is_unseen_text(other)]
    else:  # people read these
        others = [other for other in others if other not in words.UNFIT]
    return others[: len(_LETTERS) - 1]


def _altered(rng: np.random.Generator, text: str) -> list[str]:
    """The text with another vowel, consonant or digit at one place; no number starts with a 0."""
    place = int(rng.integers(len(text)))
    letters = next((letters for letters in (_VOWELS, _CONSONANTS, _DIGITS) if text[place] in letters), _CONSONANTS)
    first = 1 if letters is _DIGITS and place == 0 and len(text) > 1 else 0
    return [
        text[:place] + other + text[place + 1 :] for other in _shuffled(rng, letters[first:]) if other != text[place]
    ]


def _alike(rng: np.random.Generator, text: str) -> list[str]:
    """Texts of the same length and from the same list, made-up words for a made-up one; none where there are none."""
    alike = _ALIKE.get(text)
    if alike is None:
        made_up = (words.made_up(rng) for _ in range(_MADE_UP_TRIES))
        return [word for word in dict.fromkeys(made_up) if len(word) == len(text) and word != text]
    return [other for other in some_of(rng, alike, 2 * len(_LETTERS)) if other != text]


def _lists_by_length() -> dict[str, tuple[str, ...]]:
    """For every listed text all of its list that are as long."""
    alike = {}
    for texts in (words.TRAIN, words.VALIDATION, words.TEST, NUMBERS):
        for length in {len(text) for text in texts}:
            as_long = tuple(text for text in texts if len(text) == length)
            alike.update(dict.fromkeys(as_long, as_long))
    return alike


_ALIKE = _lists_by_length()


def _shuffled(rng: np.random.Generator, items: Sequence[_T]) -> list[_T]:
    return some_of(rng, items, len(items))


def _drawn(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """A place among the weights, each as likely as its weight."""
    draw = rng.random() * sum(weights)
    for place, weight in enumerate(weights):
        draw -= weight
        if draw < 0:
            return place
    return len(weights) - 1
