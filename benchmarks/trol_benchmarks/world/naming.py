"""Draws what a scene shows: names that its split may hold, in colours that stand out from the background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trol_benchmarks.world import words
from trol_benchmarks.world.chance import one_of, some_of, whole_between
from trol_benchmarks.world.contrast import Background, colours_of_prints, colours_of_things
from trol_benchmarks.world.splits import (
    NUMBERS,
    PAIRS,
    SPLITS,
    ColouredText,
    Combination,
    Pair,
    Split,
    pair_split,
    text_split,
)

MOST_THINGS = 6
FEWEST_BARS, MOST_BARS = 3, 5
PRINT_BESIDE_OBJECTS = 0.2  # share of the scenes of objects
# Shares of the scenes of objects in which several share a shape, or a colour; and in which some may be alike in both.
SAME_SHAPE, SAME_COLOUR, ALIKE = 0.3, 0.3, 0.1

# By the split that keeps them for itself; None: all splits have them.
_KEEPERS: tuple[Split | None, ...] = (None, *SPLITS)
_PAIRS = {keeper: [pair for pair in PAIRS if pair_split(*pair) == keeper] for keeper in _KEEPERS}
_WORDS: dict[Split | None, tuple[str, ...]] = {None: words.TRAIN, "validation": words.VALIDATION, "test": words.TEST}
_NUMBERS = {
    keeper: {
        digits: [number for number in NUMBERS if len(number) == digits and text_split(number) == keeper]
        for digits in (1, 2, 3)
    }
    for keeper in _KEEPERS
}
# How long numbers are, by how often; no split keeps single digits for itself.
_DIGITS, _DIGITS_KEPT = (1, 2, 2, 3, 3), (2, 3)


def name_objects(rng: np.random.Generator, background: Background, split: Split, kept: bool) -> Combination:
    """1 to 6 things, sometimes a print: with `kept` at least one pair that `split` keeps for itself, where it can."""
    count = whole_between(rng, 1, MOST_THINGS)
    colours = colours_of_things(background)
    pairs = _pairs(rng, colours, count)
    if kept:
        own = [pair for pair in _PAIRS[split] if pair[0] in colours]
        own = some_of(rng, own, whole_between(rng, 1, min(2, count)))
        pairs[count - len(own) :] = own
    texts = [_text(rng, split)] if rng.random() < PRINT_BESIDE_OBJECTS else []
    in_any_order = some_of(rng, pairs, count)
    return Combination(pairs=tuple(in_any_order), texts=_coloured(rng, texts, background))


def name_prints(rng: np.random.Generator, background: Background, split: Split, kept: bool) -> Combination:
    """A word, a number or both, and 0 to 2 things: with `kept` one of the texts is one `split` keeps for itself."""
    has_word, has_number = one_of(rng, ((True, False), (False, True), (True, True)))
    kept_word = kept and has_word and not (has_number and rng.random() < 0.5)
    texts = []
    if has_word:
        texts.append(_word(rng, split, kept_word))
    if has_number:
        texts.append(_number(rng, split, kept and not kept_word))
    colours = colours_of_things(background)
    pairs = _pairs(rng, colours, max(0, whole_between(rng, -1, 2)))
    return Combination(pairs=tuple(pairs), texts=_coloured(rng, texts, background))


def name_bars(rng: np.random.Generator, background: Background, split: Split, kept: bool) -> Combination:
    """3 to 5 bars, each of a colour of its own; splits keep no colours for themselves."""
    colours = colours_of_things(background)
    return Combination(bars=tuple(some_of(rng, colours, whole_between(rng, FEWEST_BARS, MOST_BARS))))


def _pairs(rng: np.random.Generator, colours: Sequence[str], count: int) -> list[Pair]:
    """`count` pairs that all splits have; several may share a shape or a colour: then counting is worth a question."""
    left = [pair for pair in _PAIRS[None] if pair[0] in colours]
    form = rng.random()
    common: list[Pair] = []
    if count > 1 and form < SAME_SHAPE + SAME_COLOUR:
        which = 1 if form < SAME_SHAPE else 0
        shared = one_of(rng, left)[which]
        sharing = [pair for pair in left if pair[which] == shared]
        common = some_of(rng, sharing, whole_between(rng, 2, count))
    if rng.random() >= ALIKE:
        left = [pair for pair in left if pair not in common]
        return common + some_of(rng, left, count - len(common))
    return common + [one_of(rng, left) for _ in range(count - len(common))]


def _text(rng: np.random.Generator, split: Split) -> str:
    return _word(rng, split, kept=False) if rng.random() < 0.5 else _number(rng, split, kept=False)


def _word(rng: np.random.Generator, split: Split, kept: bool) -> str:
    # Half of train's words are made up: a model that has only seen few words guesses them by a letter or two.
    if split == "train" and rng.random() < 0.5:
        return words.made_up(rng)
    return one_of(rng, _WORDS[split if kept else None])


def _number(rng: np.random.Generator, split: Split, kept: bool) -> str:
    if kept:
        return one_of(rng, _NUMBERS[split][one_of(rng, _DIGITS_KEPT)])
    return one_of(rng, _NUMBERS[None][one_of(rng, _DIGITS)])


def _coloured(rng: np.random.Generator, texts: list[str], background: Background) -> tuple[ColouredText, ...]:
    colours = colours_of_prints(background)
    return tuple((one_of(rng, colours), text) for text in texts)
