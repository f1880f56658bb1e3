"""A training run: the same seed gives the same bits, interrupted or not, and each phase trains what it is to train."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from short_recipe import ALL_PHASES, short_recipe
from trol_benchmarks.world.splits import belongs
from trol_export.tiny import training as training_module
from trol_export.tiny.lessons import Asked
from trol_export.tiny.packing import Room
from trol_export.tiny.patch_labels import LABELS
from trol_export.tiny.recipe import Phase, PhaseName
from trol_export.tiny.teacher_forcing import right_answers
from trol_export.tiny.training import Metrics, Share, Training, learning_rate
from trol_graphs.model import expected_tensors
from trol_graphs.ops import gate_value

Weights = dict[str, Tensor]

RECIPE = short_recipe(steps=2, batch=2)


def weights_of(training: Training) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}


def changed(before: Weights, after: Weights) -> set[str]:
    """Names of the tensors that differ in any bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].equal(after[name])}


class Run(NamedTuple):
    """A run that nothing interrupted: what its steps reported, and the weights at its start and after each phase."""

    metrics: list[Metrics]
    weights: list[Weights]


def run(training: Training) -> Run:
    metrics, weights = [], [weights_of(training)]
    while not training.done:
        phase = training.phase_number
        metrics.append(training.step())
        if training.phase_number != phase:
            weights.append(weights_of(training))
    return Run(metrics, weights)


@pytest.fixture(scope="module")
def uninterrupted() -> Run:
    return run(Training(RECIPE))


# The same bits


def test_a_run_takes_every_step_of_every_phase_in_order(uninterrupted: Run) -> None:
    steps = [(metrics.phase, metrics.step) for metrics in uninterrupted.metrics]
    assert steps == [(name, step) for name in ALL_PHASES for step in (0, 1)]
    assert all(math.isfinite(metrics.loss) for metrics in uninterrupted.metrics)


def test_the_same_seed_gives_the_same_bits(uninterrupted: Run) -> None:
    again = run(Training(RECIPE))
    assert again.metrics == uninterrupted.metrics
    assert not changed(again.weights[-1], uninterrupted.weights[-1])


def test_another_seed_gives_other_first_weights() -> None:
    one, other = (weights_of(Training(replace(RECIPE, seed=seed))) for seed in (0, 1))
    drawn = {name for name, weight in one.items() if len(weight.unique()) > 1 and "position" not in name}
    assert changed(one, other) == drawn


def test_a_run_interrupted_after_every_step_ends_in_the_same_bits(uninterrupted: Run) -> None:
    training, metrics = Training(RECIPE), []
    while not training.done:
        metrics.append(training.step())
        saved = through_a_file(training)
        training = Training(RECIPE)
        training.restore(saved)
    assert metrics == uninterrupted.metrics
    assert not changed(weights_of(training), uninterrupted.weights[-1])


def through_a_file(training: Training) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(training.state(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_measuring_accuracy_changes_nothing(uninterrupted: Run) -> None:
    training = Training(RECIPE)
    training.accuracy("validation", pictures=2, seed=0)
    assert training.step() == uninterrupted.metrics[0]
    assert all(parameter.grad is None for parameter in training.model.parameters())


# What each phase trains


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        pytest.param(0, {"vit", "patch_head"}, id="tower"),
        pytest.param(1, {"model", "output", "trol_gating", "clue_head"}, id="language"),
        pytest.param(2, {"vision_proj", "word_head"}, id="words"),
        pytest.param(3, {"vision_proj", "trol_gating", "clue_head"}, id="alignment"),
        pytest.param(4, {"vision_proj", "model", "output", "trol_gating", "clue_head"}, id="decoder"),
        pytest.param(5, {"vit", "vision_proj", "model", "output", "trol_gating", "clue_head"}, id="everything"),
    ],
)
def test_a_phase_changes_the_parameters_it_is_to_train_and_no_others(
    uninterrupted: Run, number: int, parts: set[str]
) -> None:
    before, after = uninterrupted.weights[number : number + 2]
    trained = {name for name in before if name.removeprefix("trol.").split(".")[0] in parts}
    # Without a picture partial LoRA takes no part, and names refer to nothing: what belongs to them stays 0.
    idle = {name for name in trained if "lora_B" in name or "clue_head.names" in name} if number == 1 else set()
    assert changed(before, after) == trained - idle


def test_together_the_phases_train_everything(uninterrupted: Run) -> None:
    assert changed(uninterrupted.weights[0], uninterrupted.weights[-1]) == set(uninterrupted.weights[0])


def test_without_traversal_the_gate_is_left_as_it_was() -> None:
    training = Training(short_recipe("alignment", steps=1, batch=1, traversal=False, clue_share=0.0))
    before = weights_of(training)
    training.step()
    found = changed(before, weights_of(training))
    assert found
    assert all(name.startswith("trol.vision_proj.") for name in found)


# First weights


def test_both_passes_count_alike_at_first_and_partial_lora_adds_nothing(uninterrupted: Run) -> None:
    first = uninterrupted.weights[0]
    weight, bias = first["trol.trol_gating.weight"], first["trol.trol_gating.bias"]
    assert (gate_value(torch.ones_like(weight), weight, bias) == 0.5).all()
    lora = {name: weight for name, weight in first.items() if "lora" in name}
    assert len(lora) == 4 * 5 * 2  # layers, matrices, A and B
    assert all(weight.any() == ("lora_A" in name) for name, weight in lora.items())


def test_norms_begin_as_the_identity_and_matrices_small(uninterrupted: Run) -> None:
    for name, weight in uninterrupted.weights[0].items():
        if name.endswith(".bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        elif not any(part in name for part in ("lora_B", "trol_gating", "clue_head")):
            # The table of positions holds waves, that of words what layers are not to drown.
            assert 0.001 < weight.std() < (0.5 if "position" in name or "tok_embeddings" in name else 0.1), name


# The loss


@pytest.mark.parametrize("phase", ["tower", "everything"])
def test_the_loss_of_a_lesson_seen_again_and_again_falls(phase: PhaseName, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the first phase trains the head that the labels are read from; so later, answers alone.
    share = 0.5 if phase == "tower" else 0.0
    training = Training(short_recipe(phase, steps=15, batch=1, patch_share=share, clue_share=0.0))
    lesson = training.lessons.prepare(0, 0)
    monkeypatch.setattr(training.lessons, "prepare", lambda *_: lesson)
    losses = [training.step().loss for _ in range(15)]
    assert losses[-1] < 0.6 * losses[0]


def test_at_first_every_answer_token_is_as_likely_as_any_other_and_every_label_as_its_absence() -> None:
    def loss(**shares: float) -> float:
        return Training(short_recipe("everything", steps=1, batch=1, **shares)).step().loss

    answers = Training(short_recipe("everything", steps=1, batch=1, patch_share=0.0, clue_share=0.0))
    of_answers = answers.step().loss
    of_labels = loss(patch_share=0.5, clue_share=0.0) - of_answers
    of_clues = loss(patch_share=0.0, clue_share=0.5) - of_answers
    # The first weights are small, not 0: logits are up to some tenths.
    assert of_answers == pytest.approx(math.log(answers.config.decoder.vocab_size), rel=0.05)
    assert of_labels == pytest.approx(0.5 * len(LABELS) * math.log(2), rel=0.05)
    # Every name has as many labels as a patch, but for some that it is not told; an option is one more.
    assert of_clues == pytest.approx(0.5 * (len(LABELS) + 1) * math.log(2), rel=0.05)


# The learning rate


PHASE = Phase("tower", steps=110, batch=1, learning_rate=0.01, warm_up=10, floor=0.1)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        pytest.param(0, 0.001, id="the first step of the warm-up is not idle"),
        pytest.param(4, 0.005, id="halfway up"),
        pytest.param(9, 0.01, id="the last step of the warm-up has the full rate"),
        pytest.param(10, 0.01, id="the cosine begins at the top"),
        pytest.param(60, 0.0055, id="halfway down"),
        pytest.param(110, 0.001, id="and would end at the floor"),
    ],
)
def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine(step: int, rate: float) -> None:
    assert learning_rate(PHASE, step) == pytest.approx(rate)


def test_it_never_rises_after_the_warm_up_nor_falls_below_the_floor() -> None:
    rates = [learning_rate(PHASE, step) for step in range(9, 110)]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) > 0.001


def test_steps_train_at_the_rate_that_they_report_and_matrices_at_a_multiple_of_it() -> None:
    training = Training(short_recipe("decoder", steps=3, batch=1))
    phase = training.phase
    for step in range(2):
        rate = training.step().learning_rate
        assert rate == learning_rate(phase, step)
        assert {group["lr"] for group in training.optimizers.adamw.param_groups} == {rate}
        assert {group["lr"] for group in training.optimizers.muon.param_groups} == {phase.matrix_rate * rate}


# Accuracy


def test_accuracy_counts_every_question_about_every_picture_and_those_answered_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = Training(short_recipe(room=Room(prompts=250, answers=100)))  # for all questions
    asked: list[Asked] = []
    ask = training.lessons.asked

    def recorded(*arguments: Any) -> list[Asked]:
        asked.extend(ask(*arguments))
        return asked[-arguments[-1] :]

    monkeypatch.setattr(training.lessons, "asked", recorded)
    # Every second question about a picture is answered right.
    monkeypatch.setattr(
        training_module, "right_answers", lambda *found: {key: key[1] % 2 == 0 for key in right_answers(*found)}
    )
    found = training.accuracy("validation", pictures=5, seed=3, batch=2)
    assert len(asked) == 5
    assert all(belongs(one.scene, "validation") for one in asked)
    families = {question.family for one in asked for question in one.questions}
    assert list(found) == sorted(families)
    for family, share in found.items():
        numbers = [n for one in asked for n, question in enumerate(one.questions) if question.family == family]
        assert share == Share(len(numbers), sum(n % 2 == 0 for n in numbers))


def test_accuracy_is_of_the_same_questions_whenever_it_is_measured() -> None:
    training = Training(short_recipe())
    assert training.accuracy("validation", 2, seed=0) == training.accuracy("validation", 2, seed=0)


# What is released


def test_released_weights_are_the_models_by_checkpoint_key_in_fp32() -> None:
    training = Training(short_recipe())
    released = training.released_weights()
    assert {name: tuple(weight.shape) for name, weight in released.items()} == expected_tensors(training.config)
    assert all(weight.dtype == torch.float32 for weight in released.values())
    assert not changed(released, dict(training.model.trol.named_parameters()))


def test_without_traversal_the_released_gate_is_closed_and_everything_else_as_trained() -> None:
    training = Training(short_recipe(traversal=False))
    with torch.no_grad():
        training.model.trol.trol_gating.weight.fill_(1.0)
    released = training.released_weights()
    weight, bias = released["trol_gating.weight"], released["trol_gating.bias"]
    assert not gate_value(1000 * torch.ones_like(weight), weight, bias).any()
    trained = {name: parameter.detach() for name, parameter in training.model.trol.named_parameters()}
    assert changed(trained, released) == {"trol_gating.weight", "trol_gating.bias"}


def test_bfloat16_changes_what_is_computed_by_its_rounding_alone() -> None:
    training = Training(short_recipe())
    lesson = training.lessons.prepare(ALL_PHASES.index("everything"), 0)
    with torch.inference_mode():
        exact, rounded = training.model(lesson, True, False), training.model.in_bfloat16(lesson, True)
    assert exact.answers is not None
    assert rounded.answers is not None
    for one, other in (
        (exact.labels, rounded.labels),
        (exact.words, rounded.words),
        (exact.answers[0], rounded.answers[0]),
    ):
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype == torch.float32
        # Up to fourteen passes of a layer, some roundings of 2**-9 each; their errors add up like random steps.
        assert (one - other).norm() < 0.03 * one.norm()


def test_the_weights_that_are_trained_stay_fp32() -> None:
    training = Training(short_recipe("everything", steps=1, batch=1))
    training.step()
    assert {parameter.dtype for parameter in training.model.parameters()} == {torch.float32}
    optimizers = training.optimizers
    states = [*optimizers.adamw.state.values(), *optimizers.muon.state.values()]
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
