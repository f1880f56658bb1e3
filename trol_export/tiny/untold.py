"""What training says nothing about: the pairs of colour and shape that are kept for validation and test.

No train scene shows them, so a network that is told of everything else what it is not learns that there are none: of a
red thing that it is no heart, as red hearts are never there. Whoever asks about a red heart later asks for what was
unlearned. So where one half of such a pair is, nothing is said about the other, neither that it is there nor that not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trol_benchmarks.world.phrases import with_article
from trol_benchmarks.world.questions import Question
from trol_benchmarks.world.splits import PAIRS, is_unseen_pair
from trol_export.tiny.packing import IGNORED, Batch
from trol_export.tiny.tokenizer import SPACE

KEPT_PAIRS = tuple(pair for pair in PAIRS if is_unseen_pair(*pair))


def partners(number_of: Mapping[str, int], size: int) -> Tensor:
    """Which names make a kept pair with a name: bool (size, size), by the names' numbers."""
    found = torch.zeros(size, size, dtype=torch.bool)
    for colour, shape in KEPT_PAIRS:
        for one, other in ((colour, shape), (shape, colour)):
            found[number_of[one], number_of[other]] = True
    return found


class KeptPairs:
    """The tokens of kept pairs, in a vocabulary: piece -> id."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        # A name stands behind a space in questions and descriptions, and at the beginning of an answer without one.
        spaced = {name: vocabulary[SPACE + name] for pair in KEPT_PAIRS for name in pair}
        bare = {name: vocabulary[name] for name in spaced}
        size = len(vocabulary)
        self._partners = partners(spaced, size)
        for name, token in spaced.items():
            self._partners[token] |= partners(bare, size)[bare[name]]
        for colour, shape in KEPT_PAIRS:
            article, _ = with_article(colour).split()
            if article == "an":  # told that no cross comes after it, a network learns that there are no orange ones
                self._partners[spaced[shape], vocabulary[SPACE + article]] = True

    def untold_tokens(self, batch: Batch, questions: Sequence[Sequence[Question]]) -> Tensor:
        """Of each token that has a target, those that would make a kept pair: bool (targets, vocab).

        In a description that is with the name beside it, the shape that follows or the colour before it, in an answer
        with the name in the question.
        """
        has_target = batch.targets != IGNORED
        ids = batch.ids.where(batch.questions >= 0, 0)  # without image tokens, which are no pieces; 0 is <unk>
        names = self._partners.any(1)[ids]
        beside = torch.zeros_like(ids)  # the token that the next one may make a pair with; <unk> makes none
        for row, asked in enumerate(questions):
            for number, question in enumerate(asked):
                own = batch.questions[row] == number
                if question.family == "description":
                    beside[row, own] = _beside_in_description(ids[row, own], names[row, own])
                elif question.family in ("colour", "shape") and question.form != "letter":
                    named = ids[row, own & names[row]][-1:]  # behind what a description before it may name
                    beside[row, own & has_target[row]] = named if len(named) else 0
        return self._partners[beside[has_target]]


def _beside_in_description(ids: Tensor, names: Tensor) -> Tensor:
    """The name that the next token of a description may make a pair with: int64 (n,), 0 where there is none.

    names: bool (n,), which tokens are colours or shapes
    """
    beside = torch.zeros_like(ids)
    (colours,) = torch.where(names[:-1] & names[1:])
    beside[colours] = ids[colours]
    for place in (-1, -2):  # which shape comes is known already where its colour is predicted, and where its article is
        beside[colours + place] = ids[colours + 1]
    return beside
