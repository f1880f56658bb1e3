"""What belongs to which split: pairs, words and numbers kept for one, and a rule for combinations of the others."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

from trol_benchmarks.world import words
from trol_benchmarks.world.scene import COLOURS, SHAPES, Scene, require_known

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Pair = tuple[str, str]  # colour and shape
ColouredText = tuple[str, str]  # colour and text

PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
# Each colour and each shape once: what a model cannot know as a pair it knows from elsewhere by its halves.
_TEST_PAIRS = (
    ("red", "heart"),
    ("orange", "cross"),
    ("yellow", "star"),
    ("green", "square"),
    ("blue", "moon"),
    ("purple", "circle"),
    ("black", "ring"),
    ("white", "triangle"),
)
_VALIDATION_PAIRS = (("red", "triangle"), ("green", "ring"), ("purple", "star"), ("black", "heart"))
_ONE_SPLIT_PAIRS: dict[Pair, Split] = {
    **dict.fromkeys(_TEST_PAIRS, "test"),
    **dict.fromkeys(_VALIDATION_PAIRS, "validation"),
}

NUMBERS = tuple(str(number) for number in range(1000))


def _hashed(name: str, parts: int) -> int:
    """One of range(parts) for a name, the same everywhere and always."""
    return zlib.crc32(name.encode()) % parts


# Of the numbers of two and three digits one in ten is kept for the test and one in twenty for validation; digits alone
# are too few to keep any.
_KEPT_NUMBERS: dict[str, Split] = {
    number: "validation" if _hashed(number, 20) == 2 else "test"
    for number in NUMBERS
    if len(number) > 1 and _hashed(number, 20) < 3
}
_ONE_SPLIT_TEXTS: dict[str, Split] = {
    **dict.fromkeys(words.TEST, "test"),
    **dict.fromkeys(words.VALIDATION, "validation"),
    **_KEPT_NUMBERS,
}
_SHARED_TEXTS = frozenset(words.TRAIN) | (frozenset(NUMBERS) - _ONE_SPLIT_TEXTS.keys())


@dataclass(frozen=True)
class Combination:
    """What a scene shows, without where and how: what tells scenes apart for the splits.

    pairs: colour and shape of every thing, in any order
    texts: colour and text of every print, in any order
    bars:  colours of the chart's bars, from left to right
    """

    pairs: tuple[Pair, ...] = ()
    texts: tuple[ColouredText, ...] = ()
    bars: tuple[str, ...] = ()

    @property
    def split(self) -> Split | None:
        """The one split whose scenes may show this; None where two splits keep parts of it for themselves."""
        kept_for = {pair_split(*pair) for pair in self.pairs} | {text_split(text) for _, text in self.texts}
        kept_for.discard(None)
        if kept_for:
            return kept_for.pop() if len(kept_for) == 1 else None
        named = [f"{colour} {name}" for colour, name in (*sorted(self.pairs), *sorted(self.texts))]
        hashed = _hashed(", ".join([*named, *self.bars]), 10)
        return "test" if hashed == 0 else "validation" if hashed == 1 else "train"


def combination(scene: Scene) -> Combination:
    """What a scene shows, without where and how."""
    return Combination(
        pairs=tuple((thing.colour, thing.shape) for thing in scene.things),
        texts=tuple((printed.colour, printed.text) for printed in scene.prints),
        bars=tuple(bar.colour for bar in scene.chart.bars) if scene.chart else (),
    )


def belongs(scene: Scene, split: Split) -> bool:
    """Whether `split` may hold the scene; at most one split may. Raises UsageError for an unknown split."""
    require_known("split", split, SPLITS)
    return combination(scene).split == split


def pair_split(colour: str, shape: str) -> Split | None:
    """The split that keeps things of this colour and shape for itself; None where all have them."""
    return _ONE_SPLIT_PAIRS.get((colour, shape))


def text_split(text: str) -> Split | None:
    """The split that keeps a word or number for itself: train what is on no list. None where all have it."""
    return None if text in _SHARED_TEXTS else _ONE_SPLIT_TEXTS.get(text, "train")


def is_unseen_pair(colour: str, shape: str) -> bool:
    """Whether no picture of the train split shows a thing of this colour and shape."""
    return pair_split(colour, shape) in ("validation", "test")


def is_unseen_text(text: str) -> bool:
    """Whether no picture of the train split shows this word or number."""
    return text_split(text) in ("validation", "test")
