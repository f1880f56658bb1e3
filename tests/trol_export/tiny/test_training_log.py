"""What a run went through, as numbers and as curves."""

from __future__ import annotations

import copy
import errno
import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trol_export.tiny.training import Metrics, Share
from trol_export.tiny.training_log import CURVES_JSON, CURVES_PNG, TrainingLog
from trol_runtime.errors import TrolError

PHASES = ("tower", "language", "alignment", "everything")


def log_of(steps: int, validations: int = 0) -> TrainingLog:
    """A log of so many steps in each phase; it was measured after each of the first ones."""
    log = TrainingLog()
    for phase in PHASES:
        for step in range(steps):
            log.add_step(Metrics(phase, step, loss=5.0 / (step + 1), learning_rate=0.001))
            if len(log.steps) <= validations:
                log.add_validation({"colour": Share(8, 2), "word": Share(5, 5)})
    return log


def picture(folder: Path) -> NDArray[np.uint8]:
    with Image.open(BytesIO((folder / CURVES_PNG).read_bytes())) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_every_step_and_every_measurement_is_in_the_json(tmp_path: Path) -> None:
    log = log_of(1, validations=2)
    log.add_step(Metrics("everything", 1, loss=1 / 3, learning_rate=0.001))
    log.write(tmp_path, {"recipe": {"seed": 3}})
    written = json.loads((tmp_path / CURVES_JSON).read_text())
    assert written["recipe"] == {"seed": 3}
    assert written["loss"] == {**{phase: [5.0] for phase in PHASES}, "everything": [5.0, 0.3333]}
    assert written["validation"] == [
        {"steps": steps, "accuracy": {"colour": 0.25, "word": 1.0}, "n": {"colour": 8, "word": 5}} for steps in (1, 2)
    ]


def test_a_run_that_goes_on_keeps_what_was_logged_before() -> None:
    saved = copy.deepcopy(log_of(2, validations=1).state())
    assert saved["steps"] == [
        {"phase": phase, "step": step, "loss": 5.0 / (step + 1), "learning_rate": 0.001}
        for phase in PHASES
        for step in range(2)
    ]
    log = TrainingLog(**saved)
    log.add_step(Metrics("everything", 2, loss=1.0, learning_rate=0.001))
    log.add_validation({"colour": Share(4, 3)})
    log.seconds += 2
    assert log.state()["seconds"] == saved["seconds"] + 2
    assert log.state()["steps"][:-1] == saved["steps"]
    assert log.state()["validation"][0] == saved["validation"][0]
    assert log.state()["validation"][1]["steps"] == 9


def test_a_log_is_validated_until_its_next_step() -> None:
    log = TrainingLog()
    assert not log.is_validated
    log.add_step(Metrics("everything", 0, loss=1.0, learning_rate=0.001))
    log.add_validation({"colour": Share(4, 3)})
    assert log.is_validated
    log.add_step(Metrics("everything", 1, loss=1.0, learning_rate=0.001))
    assert not log.is_validated


def test_the_curves_are_a_picture_of_900_by_700_pixels(tmp_path: Path) -> None:
    log_of(60, validations=3).write(tmp_path, {})
    assert picture(tmp_path).shape == (700, 900, 3)


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(TrainingLog(), id="no step at all"),
        pytest.param(log_of(1), id="steps, no measurement"),
        pytest.param(log_of(3, validations=1), id="fewer steps than a point of the curve is the mean of"),
    ],
)
def test_a_run_that_has_hardly_begun_is_drawn_too(tmp_path: Path, log: TrainingLog) -> None:
    log.write(tmp_path, {})
    written = json.loads((tmp_path / CURVES_JSON).read_text())
    assert sum(len(losses) for losses in written["loss"].values()) == len(log.steps)
    assert written["validation"] == log.validation
    assert picture(tmp_path).shape == (700, 900, 3)


def test_the_curves_show_the_loss_of_every_phase_and_the_accuracies(tmp_path: Path) -> None:
    def colours(log: TrainingLog) -> list[int]:
        """How many colours the upper and the lower half of the picture have that are no shade of grey."""
        log.write(tmp_path, {})
        halves = picture(tmp_path)[:350], picture(tmp_path)[350:]
        pixels = [half.reshape(-1, 3).astype(int) for half in halves]
        return [len(np.unique(one[np.ptp(one, axis=1) > 100], axis=0)) for one in pixels]

    assert colours(TrainingLog()) == [0, 0]
    upper, lower = colours(log_of(60))
    assert upper >= 4
    assert lower == 0
    upper, lower = colours(log_of(60, validations=30))
    assert lower >= 2


def test_later_curves_replace_earlier_ones(tmp_path: Path) -> None:
    log_of(1).write(tmp_path, {})
    log_of(2).write(tmp_path, {})
    assert json.loads((tmp_path / CURVES_JSON).read_text())["loss"] == {phase: [5.0, 2.5] for phase in PHASES}
    assert sorted(path.name for path in tmp_path.iterdir()) == [CURVES_JSON, CURVES_PNG]


def test_a_full_disk_leaves_the_curves_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_of(1).write(tmp_path, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrolError, match=r"curves\.json: disk full after "):
        log_of(2).write(tmp_path, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
