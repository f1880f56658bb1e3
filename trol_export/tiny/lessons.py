"""What a training step is given: pictures as the engine sees them, with questions or labels that belong to them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trol_benchmarks.world.chance import one_of
from trol_benchmarks.world.description import describe
from trol_benchmarks.world.picture import draw
from trol_benchmarks.world.questions import FORM_SHARES, Question, ask, vocabulary_texts
from trol_benchmarks.world.sampling import Kind, sample_scene
from trol_benchmarks.world.scene import Scene
from trol_benchmarks.world.splits import Split
from trol_export.tiny.clues import ClueFinder, Clues
from trol_export.tiny.crowded import crowded_scene
from trol_export.tiny.packing import Batch, Packer
from trol_export.tiny.patch_labels import patch_labels
from trol_export.tiny.recipe import Phase, Recipe, model_config
from trol_export.tiny.tokenizer import build_tokenizer
from trol_export.tiny.unnamed_colours import COLOUR_LABELS, in_unnamed_colours
from trol_export.tiny.untold import KeptPairs
from trol_export.tokenizer_conversion import convert_tokenizer
from trol_runtime.model_config import ModelConfig
from trol_runtime.preprocess import preprocess
from trol_runtime.prompt import official_template
from trol_runtime.tokenizer import TextTokenizer

_STEPS_APART = 30  # between two steps that show a picture
_NOT_TOLD = ("position", "tallest_bar")  # what descriptions do not answer


class Asked(NamedTuple):
    """A scene and the questions asked about it."""

    scene: Scene
    questions: list[Question]


@dataclass(frozen=True)
class Lesson:
    """One batch.

    pixel_values: float32 (b, 3, h, w); None in the language phase
    batch:        packed questions and answers; None where there are labels alone
    labels:       bool (b * patches, labels), where tower or projector learn by them
    hidden:       bool (b * patches, labels), of which of them the pictures say nothing, in the tower phase
    clues:        where the decoder learns by them
    untold:       bool (targets, vocab), what an answer's next token is not said to differ from
    """

    pixel_values: Tensor | None
    batch: Batch | None
    labels: Tensor | None = None
    hidden: Tensor | None = None
    clues: Clues | None = None
    untold: Tensor | None = None


class _Drawn(NamedTuple):
    """Pictures with what a Lesson says of them, fields as there."""

    pixel_values: Tensor
    labels: Tensor
    hidden: Tensor


class Lessons:
    """The lessons of a recipe: those of a step depend on its seed, phase and number alone."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tokenizer_json, self.config = tokenizer_and_config()
        tokenizer = _text_tokenizer(self.tokenizer_json, self.config)
        image_tokens, image_id = self.config.vision.tokens_per_crop, self.config.image_token_id
        self.packer = Packer(tokenizer, image_tokens, image_id)
        self.text_packer = Packer(tokenizer, 0, image_id)
        vocabulary = self.tokenizer_json["model"]["vocab"]
        self.clue_finder, self.kept_pairs = ClueFinder(vocabulary), KeptPairs(vocabulary)
        self._drawn: dict[tuple[int, int], _Drawn] = {}

    def prepare(self, phase_number: int, step: int) -> Lesson:
        """The lesson of a step, counted from 0 in its phase, `recipe.phases[phase_number]`.

        The tower's and the words' have labels alone, the language's no pictures; those of everything have all.
        """
        phase = self.recipe.phases[phase_number]
        if phase.name == "tower":
            return self._to_see(phase_number, step)
        rng = self._rng(phase_number, step)
        if phase.name == "words":
            scenes = [sample_scene(rng, "train", one_of(rng, phase.kinds)) for _ in range(phase.batch)]
            return Lesson(self._pixel_values(scenes), None, self._labels(scenes))
        asked = self.asked(rng, "train", phase.kinds, phase.batch, self.recipe.form_shares)
        if phase.name == "language":
            asked = [_told(*one) for one in asked]
            batch = self.text_packer.pack([one.questions for one in asked], self.recipe.room)
            lesson = self._to_learn(Lesson(None, batch), asked)
            assert lesson.clues is not None
            return replace(lesson, clues=lesson.clues.of_options())
        labels = self._labels([one.scene for one in asked]) if phase.name == "everything" else None
        return replace(self._to_learn(self.lesson(asked), asked), labels=labels)

    def _to_see(self, phase_number: int, step: int) -> Lesson:
        """Pictures drawn for this step, and for some steps that are to come: each is shown several times."""
        phase = self.recipe.phases[phase_number]
        numbers = [step + _STEPS_APART * age for age in range(phase.shown)]
        known = {key: drawn for key, drawn in self._drawn.items() if key[0] == phase_number and key[1] >= step}
        for number in numbers:
            if (phase_number, number) not in known:
                known[phase_number, number] = self._draw_to_see(phase_number, number)
        self._drawn = known
        pixel_values, labels, hidden = zip(*(known[phase_number, number] for number in numbers), strict=True)
        return Lesson(torch.cat(pixel_values), None, torch.cat(labels), torch.cat(hidden))

    def _draw_to_see(self, phase_number: int, number: int) -> _Drawn:
        """The pictures that are shown for the last time in the step of this number."""
        phase, rng = self.recipe.phases[phase_number], self._rng(phase_number, number)
        scenes = [_scene_to_see(rng, phase) for _ in range(phase.batch // phase.shown)]
        unnamed = rng.random(len(scenes)) < phase.unnamed
        shown = [
            in_unnamed_colours(rng, scene) if is_unnamed else scene
            for scene, is_unnamed in zip(scenes, unnamed, strict=True)
        ]
        patches = torch.from_numpy(unnamed).repeat_interleave(self.config.vision.tokens_per_crop)
        hidden = patches[:, None] & COLOUR_LABELS
        return _Drawn(self._pixel_values(shown), self._labels(scenes) & ~hidden, hidden)

    def _rng(self, phase_number: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, phase_number, number])

    def lesson(self, asked: Sequence[Asked]) -> Lesson:
        """A lesson of questions about pictures."""
        batch = self.packer.pack([one.questions for one in asked], self.recipe.room)
        return Lesson(self._pixel_values([one.scene for one in asked]), batch)

    def asked(
        self,
        rng: np.random.Generator,
        split: Split,
        kinds: Sequence[Kind],
        count: int,
        form_shares: Sequence[float] = FORM_SHARES,
    ) -> list[Asked]:
        """`count` new scenes with questions."""
        scenes = [sample_scene(rng, split, one_of(rng, kinds)) for _ in range(count)]
        return [Asked(scene, ask(rng, scene, self.recipe.questions, form_shares)) for scene in scenes]

    def _to_learn(self, lesson: Lesson, asked: Sequence[Asked]) -> Lesson:
        """The lesson with what is known about its questions beside their answers."""
        assert lesson.batch is not None
        clues = self.clue_finder.find(lesson.batch, *zip(*asked, strict=True))
        untold = self.kept_pairs.untold_tokens(lesson.batch, [one.questions for one in asked])
        return replace(lesson, clues=clues, untold=untold)

    def _labels(self, scenes: Sequence[Scene]) -> Tensor:
        return torch.from_numpy(np.concatenate([patch_labels(scene, self.config.vision.grid) for scene in scenes]))

    def _pixel_values(self, scenes: Sequence[Scene]) -> Tensor:
        return torch.from_numpy(preprocess([draw(scene) for scene in scenes], self.config.vision))


def _scene_to_see(rng: np.random.Generator, phase: Phase) -> Scene:
    if rng.random() < phase.crowded:
        return crowded_scene(rng)
    return sample_scene(rng, "train", one_of(rng, phase.kinds))


def _told(scene: Scene, questions: Sequence[Question]) -> Asked:
    """The same questions about a picture that is described instead of shown."""
    description = describe(scene)
    answered = [question for question in questions if question.family not in _NOT_TOLD]
    return Asked(scene, [replace(question, text=f"{description}\n{question.text}") for question in answered])


def tokenizer_and_config() -> tuple[dict[str, Any], ModelConfig]:
    """tokenizer.json for the words of the drawn world, and the model over its vocabulary."""
    tokenizer = build_tokenizer(vocabulary_texts())
    return tokenizer, model_config(len(tokenizer["model"]["vocab"]))


def _text_tokenizer(tokenizer_json: dict[str, Any], config: ModelConfig) -> TextTokenizer:
    """The tokenizer as an export would convert it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").write_text(json.dumps(tokenizer_json), encoding="utf-8")
        return TextTokenizer(convert_tokenizer(Path(folder), config), official_template(config.arch))
