"""What the words of a question refer to in its picture, by which the decoder learns to look things up.

An answer is one token, from which a network would have to find out at once that a name in a question has to do with
the patches that show what is so named, and an option with what the question asks for. So tokens on the way are told:
a name, which things are called so and what patches say of them; an option, its letter and whether it is right as far as
it goes. In descriptions it is the article before a name that is told which thing comes next.

An option says that it is right in a channel of its own, and where it is not it says nothing. If wrong ones are marked,
too, they are what the answer looks at, to rule out their letters: that goes with two options and fails with four.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trol_benchmarks.world.description import in_order, print_kind
from trol_benchmarks.world.phrases import plural
from trol_benchmarks.world.questions import Question
from trol_benchmarks.world.scene import COLOURS, SHAPES, Scene
from trol_export.tiny.label_loss import label_loss
from trol_export.tiny.packing import Batch
from trol_export.tiny.patch_labels import CHARACTER_PLACES, LABELS, bar_labels, labelled, thing_labels
from trol_export.tiny.tokenizer import SPACE

LETTERS = "ABCD"
_THING_NOUNS = ("thing", "object", "shape")
_NOUNS = (*SHAPES, *_THING_NOUNS, "bar", "word", "number")
# How far into the layers: an option is judged by what the names before it were found to mean.
_NAMES_AT, _OPTIONS_AT = 0.5, 0.75
# Where a token of an option says that it is right: by more than the threshold, the surer the more.
RIGHT_CHANNEL, _THRESHOLD, _SURENESS = 1, 0.75, 4.0


class Clues(NamedTuple):
    """Tokens of a batch's questions, as indices in its flat (b * t), and what is to be known there.

    names:   int64 (n,), tokens that end a name, and articles in descriptions
    labels:  bool (n, labels), which of LABELS anything of this name has, or the thing that is named next
    options: int64 (m,), tokens of lettered options
    right:   bool (m,), whether the option is the right one as far as up to this token
    letters: int64 (m,), the option's number
    """

    names: Tensor
    labels: Tensor
    options: Tensor
    right: Tensor
    letters: Tensor

    def of_options(self) -> Clues:
        """Those alone that need no picture."""
        return self._replace(names=self.names[:0], labels=self.labels[:0])


class ClueFinder:
    """Finds the clues in packed questions."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        """vocabulary: piece -> id"""
        forms = {form: noun for noun in _NOUNS for form in (noun, plural(noun))}
        self._colours = {vocabulary[SPACE + colour]: colour for colour in COLOURS}
        self._nouns = {vocabulary[SPACE + form]: noun for form, noun in forms.items() if SPACE + form in vocabulary}
        self._letters = {vocabulary[letter] for letter in LETTERS}
        self._articles = {vocabulary[SPACE + article] for article in ("a", "an")}
        self._newline, self._dot, self._space = (vocabulary[piece] for piece in ("\n", ".", SPACE))

    def find(self, batch: Batch, scenes: Sequence[Scene], questions: Sequence[Sequence[Question]]) -> Clues:
        """The clues of a batch whose rows ask these questions about these scenes."""
        names: list[tuple[int, NDArray[np.bool_]]] = []
        options: list[tuple[int, bool, int]] = []
        for row, (scene, asked) in enumerate(zip(scenes, questions, strict=True)):
            known = _known(scene)
            for question, prompt, answer in _packed(batch, row, asked):
                names += self._names(prompt, known)
                if question.family == "description":
                    names += self._named_next(answer, scene)
                if question.form == "letter":
                    options += self._options(prompt, LETTERS.index(question.answer))
        return Clues(
            names=torch.tensor([index for index, _ in names], dtype=torch.int64),
            labels=torch.from_numpy(np.array([labels for _, labels in names]).reshape(-1, len(LABELS))),
            options=torch.tensor([index for index, _, _ in options], dtype=torch.int64),
            right=torch.tensor([is_right for _, is_right, _ in options], dtype=torch.bool),
            letters=torch.tensor([number for _, _, number in options], dtype=torch.int64),
        )

    def _names(self, prompt: Sequence[_Token], known: Sequence[_Known]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Colours and nouns, and the labels of what is of that colour and noun."""
        colour = ""
        for index, token in prompt:
            noun = self._nouns.get(token, "")
            colour = self._colours.get(token, colour if noun else "")
            if colour or noun:
                called = [one.labels for one in known if colour in ("", one.colour) and noun in ("", *one.nouns)]
                yield index, np.logical_or.reduce([labelled(()), *called])

    def _named_next(self, description: Sequence[_Token], scene: Scene) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """The articles of things, each with the labels of its thing."""
        articles = [index for index, token in description if token in self._articles]
        for index, thing in zip(articles, in_order(scene.things), strict=True):
            yield index, labelled(thing_labels(thing, scene))

    def _options(self, prompt: Sequence[_Token], right: int) -> Iterator[tuple[int, bool, int]]:
        """The tokens of options, whether they are those of number `right` up to there, and their option's number."""
        tokens = [token for _, token in prompt]
        options: list[Sequence[_Token]] = []
        for place in range(len(tokens) - 3):
            newline, letter, dot = tokens[place : place + 3]
            if newline == self._newline and letter in self._letters and dot == self._dot:
                end = tokens.index(self._newline, place + 1)
                options.append([at for at in prompt[place + 3 : end] if at.id != self._space])
        due = [token for _, token in options[right]]
        for number, option in enumerate(options):
            ids = [token for _, token in option]
            for length, (index, _) in enumerate(option, 1):
                yield index, ids[:length] == due[:length], number


class _Token(NamedTuple):
    """A token of a batch: its index in the flat (b * t), and its id."""

    position: int
    id: int


def _packed(
    batch: Batch, row: int, asked: Sequence[Question]
) -> Iterator[tuple[Question, Sequence[_Token], Sequence[_Token]]]:
    """The questions of a row that had room, each with the tokens of its prompt and of its answer."""
    numbers, ids = batch.questions[row].numpy(), batch.ids[row].tolist()
    for number, question in enumerate(asked):
        places = np.flatnonzero(numbers == number).tolist()
        tokens = [_Token(row * len(ids) + place, ids[place]) for place in places]
        in_prompt = sum(place < batch.prompt_tokens for place in places)
        if tokens:
            yield question, tokens[:in_prompt], tokens[in_prompt:]


class _Known(NamedTuple):
    """Something that a scene shows: what it can be called, and its labels."""

    colour: str
    nouns: tuple[str, ...]
    labels: NDArray[np.bool_]


def _known(scene: Scene) -> list[_Known]:
    things = [
        _Known(thing.colour, (thing.shape, *_THING_NOUNS), labelled(thing_labels(thing, scene)))
        for thing in scene.things
    ]
    prints = [
        _Known(one.colour, (print_kind(one),), labelled((one.colour, *one.text, *CHARACTER_PLACES[: len(one.text)])))
        for one in scene.prints
    ]
    bars = [_Known(names[0], ("bar",), labelled(names)) for names in (bar_labels(scene.chart) if scene.chart else [])]
    return things + prints + bars


class ClueHead(nn.Module):
    """How far what layers put out already tells the clues.

    letters: ids of LETTERS
    """

    def __init__(self, hidden_size: int, letters: Sequence[int]) -> None:
        super().__init__()
        self.names = nn.Linear(hidden_size, len(LABELS))
        self._letters = list(letters)

    def forward(self, layer_outputs: Sequence[Tensor], clues: Clues, words: Tensor) -> Tensor:
        """The loss of a name and an option together, a scalar.

        layer_outputs: (b * t, hidden) of each layer
        words:         (vocab, hidden), by which the model itself tells words: an option's letter in these terms has
          only to be copied to be the answer
        """
        loss = torch.zeros(())
        if len(clues.names):
            logits = self.names(_read(layer_outputs, _NAMES_AT, clues.names)).float()
            loss = loss + label_loss(logits, clues.labels)
        if len(clues.options):
            options = _read(layer_outputs, _OPTIONS_AT, clues.options)
            surely = _SURENESS * (options[:, RIGHT_CHANNEL].float() - _THRESHOLD)
            loss = loss + F.binary_cross_entropy_with_logits(surely, clues.right.float())
            loss = loss + F.cross_entropy(F.linear(options, words[self._letters]).float(), clues.letters)
        return loss


def _read(layer_outputs: Sequence[Tensor], share: float, tokens: Tensor) -> Tensor:
    """What the layer at this share of their number puts out for these tokens, scaled to a mean square of 1."""
    x = layer_outputs[int(share * len(layer_outputs)) - 1][tokens]
    return F.rms_norm(x, x.shape[-1:])
