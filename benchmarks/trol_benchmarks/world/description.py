"""The one way in which the drawn world describes a picture, and what such a text names.

    There are three objects: a red circle, a blue star and a green cross.
    There is one object: an orange heart. The word CAT is printed in red.
    A bar chart with four bars: red, blue, green and black.

Everything is named from left to right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from trol_benchmarks.world.phrases import plural, with_article
from trol_benchmarks.world.scene import COLOURS, SHAPES, Print, Scene, Thing
from trol_runtime.errors import UsageError

_KINDS = ("word", "number")
COUNT_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def describe(scene: Scene) -> str:
    """What the picture shows, in one sentence for each kind of content.

    Raises UsageError when the scene is empty or holds more of a kind than COUNT_WORDS can count.
    """
    sentences = []
    if scene.things:
        things = in_order(scene.things)
        verb = "is" if len(things) == 1 else "are"
        names = _listed([with_article(thing.name) for thing in things])
        sentences.append(f"There {verb} {_counted(len(things), 'object')}: {names}.")
    if scene.prints:
        prints = sorted(scene.prints, key=lambda text: (text.x, text.y))
        sentence = _listed([f"the {print_kind(text)} {text.text} is printed in {text.colour}" for text in prints])
        sentences.append(f"T{sentence[1:]}.")
    if scene.chart is not None:
        colours = [bar.colour for bar in scene.chart.bars]
        sentences.append(f"A bar chart with {_counted(len(colours), 'bar')}: {_listed(colours)}.")
    if not sentences:
        raise UsageError("an empty picture has no description; put a thing, a print or a chart into the scene")
    return " ".join(sentences)


def in_order(things: Iterable[Thing]) -> list[Thing]:
    """As a description names them: from the left."""
    return sorted(things, key=lambda thing: (thing.x, thing.y))


def print_kind(text: Print) -> str:
    """What the text is called: "word" or "number"."""
    return "number" if text.is_number else "word"


def grammar_texts() -> list[str]:
    """Texts that together hold every word of a description, but no printed text."""
    counted = [f"There {'is' if word == 'one' else 'are'} {word} objects" for word in COUNT_WORDS]
    charts = [f"A bar chart with {word} bars" for word in COUNT_WORDS]
    things = [with_article(f"{colour} {shape}") for colour in COLOURS for shape in SHAPES]
    prints = [
        f"{the} {kind} is printed in {colour}." for the in ("The", "the") for kind in _KINDS for colour in COLOURS
    ]
    return [f"There is one object: {_listed(things)}.", *counted, *charts, *prints, _listed(list(COLOURS))]


def _counted(count: int, noun: str) -> str:
    if count > len(COUNT_WORDS):
        raise UsageError(f"a description counts to {len(COUNT_WORDS)}, and this picture has {count} {plural(noun)}")
    return f"{COUNT_WORDS[count - 1]} {noun if count == 1 else plural(noun)}"


def _listed(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def _any_of(names: Iterable[str]) -> str:
    """A pattern for one of the names, with or without a capital at its start: RED in capitals is printed text."""
    return "|".join(f"[{name[0].upper()}{name[0]}]{name[1:]}" for name in names)


_NAME = re.compile(
    rf"\b(?:(?P<count>{_any_of(COUNT_WORDS)}|\d+) )?(?P<colour>{_any_of(COLOURS)})"
    rf"(?: (?P<shape>{_any_of(SHAPES)})(?:e?s)?)?\b"
)
_PRINTED = re.compile(
    r"\b(?:"
    r"(?:word|number) (?!(?:at|here|in|is|of|on|printed|reads|says|shown|that|to|written)\b)(\w+)"  # in whatever case
    r"|([A-Z]{2,})"
    rf"|(\d+)\b(?! (?:object|thing|shape|bar|{_any_of(COLOURS)}))"
    r")\b"
)
_TOTAL = re.compile(rf"\b(?P<count>{_any_of(COUNT_WORDS)}|\d+) (?P<noun>[Oo]bject|[Bb]ar)s?\b")


def named(text: str) -> Counter[str]:
    """What a description names, in the words of the grammar or in many others, and how often.

    "red circle", "CAT in red", "bar in red" are such names.

    A colour without a shape belongs to the printed text that it stands before, else to the one that it follows, else
    to a bar where the sentence speaks of bars. An answer without names has none: an empty Counter.
    """
    found: Counter[str] = Counter()
    for sentence in re.split(r"[.!?;\n]", text):
        colours = []
        for name in _NAME.finditer(sentence):
            colour = name["colour"].lower()
            if name["shape"]:
                count = _number(name["count"]) if name["count"] else 1
                found[f"{colour} {name['shape'].lower()}"] += count
            else:
                colours.append((name.end("colour"), colour))
        for printed in _PRINTED.finditer(sentence):
            colour = _claimed(colours, printed.start())
            found[f"{printed[printed.lastindex or 0].upper()} in {colour}"] += 1
        if re.search(r"\bbars?\b", sentence, re.IGNORECASE):
            found.update(f"bar in {colour}" for _, colour in colours)
    return found


def miscounts(text: str) -> bool:
    """Whether a description says how many objects, or bars, there are, and names another number of them."""
    names = named(text)
    bars = sum(times for name, times in names.items() if name.startswith("bar in "))
    things = sum(times for name, times in names.items() if " in " not in name)
    totals = {total["noun"].lower(): _number(total["count"]) for total in _TOTAL.finditer(text)}
    return totals.get("object", things) != things or totals.get("bar", bars) != bars


def _number(count: str) -> int:
    """Of a word of COUNT_WORDS, or of digits."""
    return int(count) if count.isdecimal() else COUNT_WORDS.index(count.lower()) + 1


def _claimed(colours: list[tuple[int, str]], start: int) -> str:
    """Take from the colours, each with its end, that of the text printed at `start`: right before it, else after."""
    order = sorted(colours, key=lambda colour: (colour[0] != start - 1, colour[0] < start, abs(colour[0] - start)))
    if not order:
        return "no colour"
    colours.remove(order[0])
    return order[0][1]
