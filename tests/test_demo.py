"""The demo: what the README shows of it is what comes out, and its picture is one that training cannot have shown."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from trol_benchmarks.world.splits import belongs

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = runpy.run_path(str(REPOSITORY / "examples" / "demo.py"))
WRITER = runpy.run_path(str(REPOSITORY / "docs" / "write_demo.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """All that the demo prints; a demo that fails is an error here."""
    return str(WRITER["demo_output"](folder))


def test_the_demo_prints_what_the_readme_shows(output: str) -> None:
    assert without_times(WRITER["answers"](output)) == without_times(WRITER["shown"]())


def test_the_demos_export_passes_its_parity_check(output: str) -> None:
    assert "parity pass" in output


def test_the_picture_in_the_readme_is_the_one_that_is_asked_about(output: str, folder: Path) -> None:
    with Image.open(WRITER["PICTURE"]) as shown, Image.open(folder / "picture.png") as asked:
        assert ImageChops.difference(shown, asked).getbbox() is None


def test_training_shows_no_picture_of_the_same_things() -> None:
    scene, _ = DEMO["scene_and_questions"]()
    assert belongs(scene, "test")


def test_answers_are_judged_by_the_truth_that_is_printed_beneath(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, questions = DEMO["scene_and_questions"]()
    assert [(question.family, question.form) for question in questions] == list(DEMO["ASKED"])
    answers = iter(["", questions[0].answer, "something else", questions[2].answer])  # the export's is empty
    monkeypatch.setitem(DEMO["main"].__globals__, "run", lambda *_: next(answers))
    assert DEMO["main"]([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^truth: (.*)$", printed, re.MULTILINE) == [question.answer for question in questions]
    assert printed.endswith("\n2 of 3 answers are right.\n")


def test_a_step_that_fails_ends_the_demo_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # as `make demo` does
    (tmp_path / "engine.plan").mkdir()  # where the export is to write
    with pytest.raises(SystemExit) as ended:
        DEMO["main"]([str(tmp_path)])
    assert ended.value.code == 2
    assert "truth" not in capfd.readouterr().out


def without_times(output: str) -> str:
    return re.sub(r"\d[\d.]* m?s\b", "...", output)
