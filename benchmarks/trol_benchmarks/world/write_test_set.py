"""Draws a test set: 1,000 questions, as many of every family, about pictures of the world's test split.

    python -m trol_benchmarks.world.write_test_set test_set.zip --seed 1

A picture has at most one question of a family: two about one word, number or bar would be right or wrong together, and
the intervals of the report count them as independent. Half of the words and numbers to be read are of those that
training never shows. Needs matplotlib, for its fonts; the same seed and versions give the same bytes.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import features

from trol_benchmarks.world.picture import draw
from trol_benchmarks.world.questions import FAMILIES, READ, Question, ask_family
from trol_benchmarks.world.sampling import Kind, sample_scene
from trol_benchmarks.world.scene import Scene
from trol_benchmarks.world.splits import is_unseen_pair, is_unseen_text
from trol_benchmarks.world.test_set import OPTION, AskedQuestion, QuestionSet, write_question_set
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import UsageError

SEED = 1  # of the released set

# Of the pictures that the scene leaves as they are: noise makes them ten times as large without loss.
_QUALITY = 85
_PER_FAMILY, _OF_DESCRIPTIONS = 111, 112

# What a question is counted as: its family, and for reading whether training may have shown the text.
_Share = tuple[str, bool | None]
_WANTED: dict[_Share, int] = {
    **{(family, None): _PER_FAMILY for family in FAMILIES if family not in READ},
    ("description", None): _OF_DESCRIPTIONS,
    **{(family, seen): _PER_FAMILY // 2 + seen for family in READ for seen in (False, True)},
}


def draw_question_set(seed: int = SEED) -> QuestionSet:
    """The set of a seed. Raises MissingExtraError without matplotlib."""
    rng = np.random.default_rng(seed)
    asked_scenes = list(_asked_scenes(rng))
    rng.shuffle(asked_scenes)  # so that the first N questions are of all kinds
    questions: list[AskedQuestion] = []
    pictures = {}
    for number, (scene, asked) in enumerate(asked_scenes):
        name = f"pictures/{number:03}.jpg"
        pictures[name] = _encoded(scene)
        questions += [
            AskedQuestion(f"{number:03}-{question.family}", name, question, is_seen(question.family, scene))
            for question in asked
        ]
    return QuestionSet(seed, tuple(questions), pictures, _versions())


def is_seen(family: str, scene: Scene) -> bool:
    """Whether training may have shown what a question of the family is about.

    number, word: what is to be read
    others:       every pair of colour and shape in the picture; for a description the printed text, too
    """
    things = () if family in READ else scene.things
    prints = [text for text in scene.prints if family in ("description", "number" if text.is_number else "word")]
    unseen_pairs = any(is_unseen_pair(thing.colour, thing.shape) for thing in things)
    return not unseen_pairs and not any(is_unseen_text(text.text) for text in prints)


def _asked_scenes(rng: np.random.Generator) -> Iterator[tuple[Scene, list[Question]]]:
    """Scenes with their questions, until there are all that are wanted."""
    missing = Counter(_WANTED)
    while missing.total():
        aim = max(missing, key=lambda share: missing[share])
        scene = sample_scene(rng, "test", _kind(aim[0]))
        if _share(aim[0], scene) != aim:
            continue
        questions = _ask(rng, scene, aim[0], [family for family in FAMILIES if missing[_share(family, scene)] > 0])
        if aim[0] in {question.family for question in questions}:
            missing.subtract(_share(question.family, scene) for question in questions)
            yield scene, questions


def _ask(rng: np.random.Generator, scene: Scene, aim: str, families: Sequence[str]) -> list[Question]:
    """One question of each of `families` that the scene admits, but of those it was not drawn for one in all.

    aim: a family that it was drawn for
    """
    shuffled = [families[place] for place in rng.permutation(len(families))]
    asked = [question for family in shuffled if (question := ask_family(rng, scene, family)) is not None]
    own = [question for question in asked if _kind(question.family) == _kind(aim)]
    return own + [question for question in asked if question not in own][:1]


def _share(family: str, scene: Scene) -> _Share:
    return family, is_seen(family, scene) if family in READ else None


def _kind(family: str) -> Kind:
    """The kind of scene that has most to ask of a family."""
    return "text" if family in READ else "chart" if family == "tallest_bar" else "objects"


def _encoded(scene: Scene) -> bytes:
    """The picture as a JPEG: the very one the scene's look asks for, where it does."""
    quality = scene.look.quality or _QUALITY
    file = BytesIO()
    draw(replace(scene, look=replace(scene.look, quality=None))).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "pillow", "matplotlib")}
    return {**packages, "freetype": features.version("freetype2") or "unknown"}


def main(argv: Sequence[str] | None) -> int:
    """Parse, draw, write; returns the exit code."""
    arguments = _parse(argv)
    AtomicFile(arguments.file, option=OPTION)  # refuses what it can before the pictures are drawn
    question_set = draw_question_set(arguments.seed)
    write_question_set(arguments.file, question_set)
    print(
        f"{arguments.file}: {len(question_set.questions):,} questions about {len(question_set.pictures)} pictures, "
        f"SHA-256 {question_set.sha256}",
        file=sys.stderr,
    )
    return 0


def _parse(argv: Sequence[str] | None) -> Namespace:
    examples = (("test_set.zip", "draw the test set of this release"), ("test_set.zip --seed 2", "draw another"))
    parser = CommandParser("write_test_set", examples)
    parser.add_argument("file", type=Path, metavar="FILE", help="a new file")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"default: {SEED}")
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        raise UsageError(f"--seed is {arguments.seed}, expected 0 or more")
    return arguments


if __name__ == "__main__":
    run_script("write_test_set", main)
