"""One training run, step by step: phases, their data, their parameters; it can stop after any step and go on exactly.

The data of a step depend on the seed, the phase and the step's number alone, so a run that goes on sees what it would
have seen. Weights are fp32; what is matrix multiplication computes in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trol_benchmarks.world.splits import Split
from trol_export.checkpoint import GATE
from trol_export.tiny.clues import LETTERS, ClueHead
from trol_export.tiny.explicit_attention import explicit_attention
from trol_export.tiny.initial_weights import initialise
from trol_export.tiny.label_loss import label_loss
from trol_export.tiny.lessons import Lesson, Lessons
from trol_export.tiny.optimizers import Optimizers
from trol_export.tiny.patch_labels import LABELS
from trol_export.tiny.recipe import Phase, Recipe
from trol_export.tiny.teacher_forcing import answer_loss, layer_outputs, predictions, right_answers
from trol_export.tiny.word_head import WordHead
from trol_graphs.model import build_model
from trol_runtime.model_config import ModelConfig

CLOSED_GATE_BIAS = -20.0  # 0.5 tanh(-20) + 0.5 is 0 in fp32

# The parameters that a phase trains, by the beginnings of their names.
TRAINED = {
    "tower": ("vit.", "patch_head."),
    "language": ("model.", "output.", "trol_gating.", "clue_head."),
    "words": ("vision_proj.", "word_head."),
    "alignment": ("vision_proj.", "trol_gating.", "clue_head."),
    "decoder": ("vision_proj.", "model.", "output.", "trol_gating.", "clue_head."),
    "everything": ("vit.", "vision_proj.", "model.", "output.", "trol_gating.", "clue_head."),
}


class Outcome(NamedTuple):
    """labels: logits of LABELS for every patch (b * patches, labels), None where the lesson has no labels
    words: the same as the image embeddings say it
    answers: logits and indices of `predictions`, None without questions
    clues: the loss of the lesson's clues, a scalar, None without any
    """

    labels: Tensor | None
    words: Tensor | None
    answers: tuple[Tensor, Tensor] | None
    clues: Tensor | None


class TinyModel(nn.Module):
    """TroL-tiny together with the heads that tower and projector learn by, which are not released.

    vocabulary: piece -> id
    """

    def __init__(self, config: ModelConfig, vocabulary: Mapping[str, int], seed: int) -> None:
        super().__init__()
        self.trol = build_model(config).to_empty(device="cpu").requires_grad_(True)
        self.patch_head = nn.Linear(config.vision.feature_size, len(LABELS))
        self.word_head = WordHead(vocabulary, config.decoder.hidden_size)
        self.clue_head = ClueHead(config.decoder.hidden_size, [vocabulary[letter] for letter in LETTERS])
        initialise(self, config, vocabulary, seed)

    def forward(self, lesson: Lesson, traversal: bool, tower_learns: bool) -> Outcome:
        """What the model makes of a lesson."""
        labels = words = embeds = answers = clues = None
        if lesson.pixel_values is not None:
            with torch.set_grad_enabled(tower_learns and torch.is_grad_enabled()):
                features = self.trol.vision_features(lesson.pixel_values.to(self.patch_head.weight.dtype))
            embeds = self.trol.vision_proj(features)
            if lesson.labels is not None:
                table = self.trol.embedding.weight
                assert isinstance(table, Tensor)
                labels, words = self.patch_head(features).float(), self.word_head(embeds, table)
        if lesson.batch is not None:
            outputs = layer_outputs(self.trol, lesson.batch, embeds, traversal=traversal)
            answers = predictions(self.trol, lesson.batch, outputs[-1])
            if lesson.clues is not None:
                answer_words = self.trol.get_submodule("output").weight
                assert isinstance(answer_words, Tensor)
                clues = self.clue_head(outputs, lesson.clues, answer_words)
        return Outcome(labels, words, answers, clues)

    def in_bfloat16(self, lesson: Lesson, traversal: bool, tower_learns: bool = False) -> Outcome:
        """`forward` with its weights rounded to bfloat16; gradients arrive at the fp32 weights."""
        rounded = {name: parameter.bfloat16() for name, parameter in self.named_parameters()}
        with explicit_attention():
            return torch.func.functional_call(self, rounded, (lesson, traversal, tower_learns))

    def compile_layers(self) -> None:
        """Have torch fuse what is not matrix multiplication; half of a step's time is spent there otherwise."""
        tower_layers = self.trol.get_submodule("vit.vision_tower.vision_model.encoder.layers")
        for layer in (*self.trol.layers, *tower_layers.children()):
            layer.compile(dynamic=False)


class Share(NamedTuple):
    """How many of n are right."""

    n: int
    correct: int


class Metrics(NamedTuple):
    """What a step reports."""

    phase: str
    step: int
    loss: float
    learning_rate: float


class Training:
    """A run of a recipe; `step` until `done`."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.lessons = Lessons(recipe)
        self.config = self.lessons.config
        self.model = TinyModel(self.config, self.lessons.tokenizer_json["model"]["vocab"], recipe.seed)
        self.phase_number = 0
        self.step_number = 0
        self._begin_phase()

    @property
    def phase(self) -> Phase:
        return self.recipe.phases[self.phase_number]

    @property
    def done(self) -> bool:
        return self.phase_number == len(self.recipe.phases)

    def _begin_phase(self) -> None:
        if self.done:
            return
        beginnings = TRAINED[self.phase.name]
        # The others get gradients too: what is compiled depends on who does, and compiling takes longer than they do.
        named = self.model.named_parameters()
        self.trained = {
            name: parameter for name, parameter in named if name.removeprefix("trol.").startswith(beginnings)
        }
        self.optimizers = Optimizers(self.trained, self.recipe)

    def step(self) -> Metrics:
        """Train one batch; the last step of a phase begins the next."""
        phase, number = self.phase, self.step_number
        rate = learning_rate(phase, number)
        loss = self._loss(self.lessons.prepare(self.phase_number, number))
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.gradient_norm)
        self.optimizers.step(rate, phase)
        self.model.zero_grad()
        self.step_number += 1
        if self.step_number == phase.steps:
            self.phase_number, self.step_number = self.phase_number + 1, 0
            self._begin_phase()
        return Metrics(phase.name, number, loss.item(), rate)

    def _loss(self, lesson: Lesson) -> Tensor:
        """Of the answers, clues, and of what patches show: as the tower's head has it, or as the projector words it."""
        found = self.model.in_bfloat16(lesson, self.recipe.traversal, self.phase.name in ("tower", "everything"))
        loss = torch.zeros(())
        if lesson.batch is not None:
            assert found.answers is not None
            loss = answer_loss(*found.answers, lesson.batch, lesson.untold)
        if found.clues is not None:
            loss = loss + self.recipe.clue_share * found.clues
        if lesson.labels is not None:
            logits = found.words if self.phase.name == "words" else found.labels
            assert logits is not None
            loss = loss + self.recipe.patch_share * label_loss(logits, lesson.labels, lesson.hidden)
        return loss

    @torch.inference_mode()
    def accuracy(self, split: Split, pictures: int, seed: int, batch: int = 32) -> dict[str, Share]:
        """Questions about `pictures` scenes of a split and how many are answered right, by family."""
        tally: dict[str, Share] = {}
        for start in range(0, pictures, batch):
            rng = np.random.default_rng([seed, start])
            asked = self.lessons.asked(rng, split, self.recipe.phases[-1].kinds, min(batch, pictures - start))
            lesson = self.lessons.lesson(asked)
            assert lesson.batch is not None
            with torch.compiler.set_stance("force_eager"):
                found = self.model.in_bfloat16(lesson, self.recipe.traversal)
            assert found.answers is not None
            for (row, number), right in right_answers(*found.answers, lesson.batch).items():
                family = asked[row].questions[number].family
                before = tally.get(family, Share(0, 0))
                tally[family] = Share(before.n + 1, before.correct + right)
        return dict(sorted(tally.items()))

    def released_weights(self) -> dict[str, Tensor]:
        """The model's parameters by checkpoint key; without traversal, with a gate that is 0 whatever it reads."""
        weights = {name: parameter.detach() for name, parameter in self.model.trol.named_parameters()}
        return weights if self.recipe.traversal else weights | closed_gate(weights)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as tensors and plain values."""
        return {
            "phase_number": self.phase_number,
            "step_number": self.step_number,
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.phase_number, self.step_number = state["phase_number"], state["step_number"]
        self.model.load_state_dict(state["model"])
        self._begin_phase()
        if not self.done:  # a finished run has nothing left to optimize
            self.optimizers.load_state_dict(state["optimizers"])


def closed_gate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A gate for these weights that is 0 whatever it reads."""
    weight, bias = (weights[name] for name in GATE)
    return dict(zip(GATE, (torch.zeros_like(weight), torch.full_like(bias, CLOSED_GATE_BIAS)), strict=True))


def learning_rate(phase: Phase, step: int) -> float:
    """Linear up to the full rate, then half a cosine down to the floor."""
    if step < phase.warm_up:
        return phase.learning_rate * (step + 1) / phase.warm_up
    done = (step - phase.warm_up) / max(phase.steps - phase.warm_up, 1)
    return phase.learning_rate * (phase.floor + (1 - phase.floor) * (1 + math.cos(math.pi * done)) / 2)
