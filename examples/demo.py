"""The whole path on TroL-tiny, the small model in this package: export it, draw a picture, ask about it.

    python examples/demo.py build/demo

The picture belongs to the test split: training shows none that combines the same things. Each answer is printed beside
the truth, which is known as the picture is drawn from a description of what it shows.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trol_benchmarks.world.picture import draw
from trol_benchmarks.world.questions import Question, ask_family
from trol_benchmarks.world.sampling import sample_scene
from trol_benchmarks.world.scene import Scene
from trol_benchmarks.world.scoring import is_right

REPOSITORY = Path(__file__).resolve().parents[1]
SEED = 86  # of the scene and its questions
# Family and form of each question.
ASKED = (("description", "plain"), ("position", "short"), ("word", "letter"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps in the folder named by `argv`; returns the code of the first command that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("directory", help="where engine and picture go; what a former run left there is replaced")
    directory = parser.parse_args(argv).directory
    engine, picture = f"{directory}/engine.plan", f"{directory}/picture.png"
    (REPOSITORY / directory).mkdir(parents=True, exist_ok=True)

    print("A trained model becomes one file:")
    run("trol-export", "--size", "tiny", "--precision", "fp16", "-o", engine, "--overwrite")

    scene, questions = scene_and_questions()
    draw(scene).save(REPOSITORY / picture)
    print(f"\nA picture that the model has never seen is drawn: {picture}")

    right = 0
    for question in questions:
        print()
        answer = run("trol-run", engine, "--image", picture, "--prompt", question.text)
        print(f"truth: {question.answer}")
        right += is_right(question, answer)
    print(f"\n{right} of {len(questions)} answers are right.")
    return 0


def scene_and_questions(seed: int = SEED) -> tuple[Scene, list[Question]]:
    """What the demo's picture shows, and what is asked about it."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "test", "text")
    asked = [ask_family(rng, scene, family, form) for family, form in ASKED]
    return scene, [question for question in asked if question is not None]


def run(*command: str) -> str:
    """Show a command, run it from the repository's root, show what it prints; returns its stdout."""
    print("$", shlex.join(command), flush=True)
    # Progress and times, on stderr, show as they come.
    result = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, encoding="utf-8")
    print(result.stdout, end="", flush=True)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
