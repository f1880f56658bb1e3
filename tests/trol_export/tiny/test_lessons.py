"""What a step of the training is given depends on its seed, phase and number alone, and comes from train scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from short_recipe import short_recipe
from trol_benchmarks.world.description import describe
from trol_benchmarks.world.questions import FORMS, Question, ask
from trol_benchmarks.world.sampling import Kind, sample_scene
from trol_benchmarks.world.scene import Scene
from trol_benchmarks.world.splits import Split, belongs
from trol_export.tiny import lessons as lessons_module
from trol_export.tiny.crowded import crowded_scene
from trol_export.tiny.lessons import Lesson, Lessons
from trol_export.tiny.packing import IGNORED
from trol_export.tiny.patch_labels import LABELS
from trol_export.tiny.recipe import Recipe
from trol_export.tiny.unnamed_colours import COLOUR_LABELS

RECIPE = short_recipe(steps=2, batch=2)
TOWER, LANGUAGE, WORDS, ALIGNMENT, DECODER, EVERYTHING = range(6)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(RECIPE)


def tensors(lesson: Lesson) -> dict[str, Tensor]:
    """Everything that a lesson holds, by name."""
    found = {"pixel_values": lesson.pixel_values, "labels": lesson.labels, "hidden": lesson.hidden}
    if lesson.batch is not None:
        found |= {field.name: getattr(lesson.batch, field.name) for field in fields(lesson.batch)}
    if lesson.clues is not None:
        found |= {f"clues.{name}": clues for name, clues in lesson.clues._asdict().items()}
    return {name: torch.as_tensor(value) for name, value in found.items() if value is not None}


def are_equal(one: Lesson, other: Lesson) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def all_steps(recipe: Recipe = RECIPE) -> Iterator[tuple[int, int]]:
    for number, phase in enumerate(recipe.phases):
        for step in range(phase.steps):
            yield number, step


# What they hold


@pytest.mark.parametrize("phase", [TOWER, WORDS])
def test_tower_and_projector_learn_what_is_there_from_pictures_and_the_labels_of_their_patches(
    lessons: Lessons, phase: int
) -> None:
    found = tensors(lessons.prepare(phase, 0))
    assert found.keys() == {"pixel_values", "labels", *(["hidden"] if phase == TOWER else [])}
    assert found["pixel_values"].shape == (2, 3, 168, 168)
    assert found["pixel_values"].dtype == torch.float32
    assert found["labels"].shape == (2 * 144, len(LABELS))
    assert found["labels"].dtype == torch.bool
    assert found["labels"].any()


def test_the_language_model_learns_from_pictures_that_are_described_instead_of_shown(
    lessons: Lessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = recorded_scenes(monkeypatch)
    lesson = lessons.prepare(LANGUAGE, 0)
    assert lesson.pixel_values is None
    assert lesson.labels is None
    assert lesson.batch is not None
    assert lesson.clues is not None
    assert len(lesson.clues.names) == 0  # where things are is not told
    assert len(lesson.clues.options) > 0
    assert lessons.config.image_token_id not in lesson.batch.ids
    for row, scene in enumerate(scenes):
        ids, described = (
            " ".join(map(str, found))
            for found in (lesson.batch.ids[row].tolist(), lessons.text_packer.tokenizer.encode_text(describe(scene)))
        )
        assert ids.count(described) > 1  # each question has it, and so has the answer of a description


def test_nothing_is_asked_that_a_description_does_not_answer() -> None:
    families = {"colour", "shape", "count", "existence", "number", "word", "description"}
    scenes = [sample_scene(np.random.default_rng(0), "train", kind) for kind in ("objects", "text", "chart")]
    for scene in scenes:
        rng = np.random.default_rng(0)
        asked = ask(rng, scene, 12)
        told = lessons_module._told(scene, asked).questions
        assert [question.family for question in told] == [one.family for one in asked if one.family in families]
        assert all(question.text.startswith(f"{describe(scene)}\n") for question in told)


@pytest.mark.parametrize(("phase", "labelled"), [(ALIGNMENT, False), (DECODER, False), (EVERYTHING, True)])
def test_the_papers_steps_learn_from_answers_and_while_the_tower_is_trained_from_labels(
    lessons: Lessons, phase: int, labelled: bool
) -> None:
    lesson = lessons.prepare(phase, 0)
    assert lesson.pixel_values is not None
    assert lesson.batch is not None
    assert len(lesson.pixel_values) == len(lesson.batch.ids) == 2
    assert lesson.clues is not None
    assert len(lesson.clues.names) > 0
    assert (lesson.batch.questions[lesson.batch.targets != IGNORED] >= 0).all()
    assert (lesson.batch.ids == lessons.config.image_token_id).sum(1).tolist() == [144, 144]
    assert (lesson.labels is not None) == labelled


def test_every_lesson_of_a_phase_has_the_same_shapes(lessons: Lessons) -> None:
    for phase in range(6):
        one, other = (tensors(lessons.prepare(phase, step)) for step in (0, 1))
        layers_see = [name for name in one if not name.startswith("clues.")]
        assert one.keys() == other.keys()
        assert all(one[name].shape == other[name].shape for name in layers_see)


def test_row_by_row_pictures_and_labels_of_a_lesson_are_of_the_same_scene(
    lessons: Lessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = recorded_scenes(monkeypatch)
    lesson = lessons.prepare(EVERYTHING, 0)
    assert lesson.pixel_values is not None
    assert lesson.labels is not None
    assert lesson.batch is not None
    for row, scene in enumerate(scenes):
        alone = lessons.lesson([lessons_module.Asked(scene, [])])
        assert alone.pixel_values is not None
        assert lesson.pixel_values[row].equal(alone.pixel_values[0])
        labels = lessons_module.patch_labels(scene, lessons.config.vision.grid)
        np.testing.assert_array_equal(lesson.labels.reshape(2, 144, -1)[row].numpy(), labels)


def recorded_scenes(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """The scenes that lessons draw from now on."""
    scenes: list[Scene] = []

    def recorded(rng: np.random.Generator, split: Split, kind: Kind | None = None) -> Scene:
        scenes.append(sample_scene(rng, split, kind))
        return scenes[-1]

    monkeypatch.setattr(lessons_module, "sample_scene", recorded)
    return scenes


def test_all_scenes_belong_to_the_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, lessons = recorded_scenes(monkeypatch), Lessons(RECIPE)
    for number, step in all_steps():
        lessons.prepare(number, step)
    assert len(scenes) == sum(phase.steps * phase.batch for phase in RECIPE.phases)
    assert all(belongs(scene, "train") for scene in scenes)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 6)])
def test_the_tower_sees_crowded_scenes_in_the_share_of_its_phase(
    monkeypatch: pytest.MonkeyPatch, share: float, expected: int
) -> None:
    crowded: list[Scene] = []

    def recorded(rng: np.random.Generator) -> Scene:
        crowded.append(crowded_scene(rng))
        return crowded[-1]

    monkeypatch.setattr(lessons_module, "crowded_scene", recorded)
    recipe = short_recipe("tower", steps=3, batch=2)
    lessons = Lessons(replace(recipe, phases=(replace(recipe.phases[0], crowded=share),)))
    for step in range(3):
        lessons.prepare(0, step)
    assert len(crowded) == expected


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_of_pictures_in_colours_without_a_name_no_colour_is_told(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    scenes = recorded_scenes(monkeypatch)
    recipe = short_recipe("tower", steps=1, batch=4)
    lessons = Lessons(replace(recipe, phases=(replace(recipe.phases[0], unnamed=share),)))
    lesson = lessons.prepare(0, 0)
    as_drawn = lessons.lesson([lessons_module.Asked(scene, []) for scene in scenes])
    assert lesson.pixel_values is not None
    assert as_drawn.pixel_values is not None
    assert lesson.labels is not None
    assert lesson.hidden is not None
    for row, scene in enumerate(scenes):
        patches = slice(144 * row, 144 * (row + 1))
        labels = torch.from_numpy(lessons_module.patch_labels(scene, lessons.config.vision.grid))
        assert lesson.pixel_values[row].equal(as_drawn.pixel_values[row]) == (share == 0)
        assert lesson.hidden[patches].equal((COLOUR_LABELS & (share > 0)).expand(144, -1))
        assert lesson.labels[patches].equal(labels & ~lesson.hidden[patches])


def test_scenes_to_validate_with_belong_to_the_split_asked_for(lessons: Lessons) -> None:
    asked = lessons.asked(np.random.default_rng(0), "validation", ("objects", "text", "chart"), 12)
    assert all(belongs(scene, "validation") for scene, _ in asked)
    assert all(0 < len(questions) <= RECIPE.questions for _, questions in asked)


@pytest.mark.parametrize(("shares", "form"), [((1.0, 0.0, 0.0), "plain"), ((0.0, 0.0, 1.0), "letter")])
def test_training_asks_in_the_forms_of_the_recipe_and_validation_as_the_test_does(
    monkeypatch: pytest.MonkeyPatch, shares: tuple[float, float, float], form: str
) -> None:
    asked: list[Question] = []

    def recorded(*arguments: Any) -> list[Question]:
        questions = ask(*arguments)
        asked.extend(questions)
        return questions

    monkeypatch.setattr(lessons_module, "ask", recorded)
    lessons = Lessons(replace(RECIPE, form_shares=shares))
    lessons.prepare(DECODER, 0)
    assert {question.form for question in asked if question.family != "description"} == {form}
    asked.clear()
    lessons.asked(np.random.default_rng(0), "validation", ("objects",), 5)
    assert {question.form for question in asked} == set(FORMS)


# What they depend on


def test_the_lesson_of_a_step_is_the_same_whatever_came_before(lessons: Lessons) -> None:
    in_order = {step: lessons.prepare(*step) for step in all_steps()}
    fresh = Lessons(RECIPE)
    for step in reversed(list(all_steps())):
        assert are_equal(in_order[step], fresh.prepare(*step))


def test_a_picture_is_shown_in_three_steps_that_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons_module, "_STEPS_APART", 2)
    recipe = short_recipe("tower", steps=6, batch=6)
    recipe = replace(recipe, phases=(replace(recipe.phases[0], shown=3),))
    lessons = Lessons(recipe)
    pictures = [lesson.pixel_values for lesson in (lessons.prepare(0, step) for step in range(6))]
    first, third, fifth = (batch.reshape(3, 2, *batch.shape[1:]) for batch in pictures[::2] if batch is not None)
    assert first[2].equal(third[1])
    assert first[2].equal(fifth[0])
    assert not first[0].equal(first[1])
    assert are_equal(lessons.prepare(0, 5), Lessons(recipe).prepare(0, 5))


def test_phase_step_and_seed_each_change_the_scenes(lessons: Lessons) -> None:
    found = [
        lessons.prepare(ALIGNMENT, 0),
        lessons.prepare(ALIGNMENT, 1),
        lessons.prepare(EVERYTHING, 0),
        Lessons(replace(RECIPE, seed=1)).prepare(ALIGNMENT, 0),
    ]
    for one, other in combinations([lesson.pixel_values for lesson in found], 2):
        assert one is not None
        assert other is not None
        assert not one.equal(other)


def test_what_is_trained_without_traversal_sees_the_same_lessons(lessons: Lessons) -> None:
    without = Lessons(replace(RECIPE, traversal=False))
    for step in all_steps():
        assert are_equal(lessons.prepare(*step), without.prepare(*step))
