"""The report on what the second pass is worth: three engines on the same questions, and how far the gate opens."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small_question_set import small_question_set
from trol_export.checkpoint import GATE, Checkpoint
from trol_export.pipeline import ExportRequest, export_engine
from trol_export.tiny import traversal_report
from trol_export.tiny.traversal_report import ENGINES, GATES_PNG, REPORT_JSON, main, mean_gates, write_closed_gate
from trol_runtime.command import run_command

from .conftest import Trained

GATED = ("image", "text", "last")  # tokens


@pytest.fixture
def of_two_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traversal_report, "read_question_set", small_question_set)


def exported(checkpoint: Path, engine: Path) -> Path:
    export_engine(ExportRequest(str(checkpoint), engine, "fp32"))
    return engine


def test_a_checkpoint_with_a_closed_gate_differs_in_nothing_else(trained_checkpoint: Path, tmp_path: Path) -> None:
    write_closed_gate(trained_checkpoint, tmp_path / "closed")
    before, after = Checkpoint.open(trained_checkpoint), Checkpoint.open(tmp_path / "closed")
    assert before.tensors.keys() == after.tensors.keys()
    assert {name for name in before.tensors if not before.torch(name).equal(after.torch(name))} == set(GATE)


def test_the_mean_of_a_closed_gate_is_zero_in_every_layer(trained_checkpoint: Path, tmp_path: Path) -> None:
    write_closed_gate(trained_checkpoint, tmp_path / "closed")
    engine = exported(tmp_path / "closed", tmp_path / "engine.plan")
    gates = mean_gates(tmp_path / "closed", engine, small_question_set())
    assert {kind: means.tolist() for kind, means in gates.items()} == {kind: [0.0, 0.0] for kind in GATED}


def test_a_gate_that_reads_nothing_has_the_mean_of_its_bias(trained: Trained, tmp_path: Path) -> None:
    weight, bias = GATE
    trained.state[weight] = torch.zeros_like(trained.state[weight])
    trained.state[bias] = torch.full_like(trained.state[bias], 0.5)
    checkpoint = trained.write(tmp_path / "checkpoint")
    gates = mean_gates(checkpoint, exported(checkpoint, tmp_path / "engine.plan"), small_question_set())
    for means in gates.values():
        np.testing.assert_allclose(means, 0.5 * math.tanh(0.5) + 0.5, rtol=1e-6)  # fp32


def test_a_gate_that_reads_its_token_is_told_apart_by_layer_and_kind(trained_checkpoint: Path, tmp_path: Path) -> None:
    gates = mean_gates(trained_checkpoint, exported(trained_checkpoint, tmp_path / "engine.plan"), small_question_set())
    assert tuple(gates) == GATED
    means = np.concatenate(list(gates.values()))
    assert len(set(means.tolist())) == 6
    assert ((means > 0) & (means < 1)).all()


@pytest.mark.usefixtures("of_two_pictures")
def test_three_engines_answer_the_same_questions(
    trained_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control, folder = tmp_path / "control", tmp_path / "report"
    write_closed_gate(trained_checkpoint, control)
    folder.mkdir()
    assert main([str(trained_checkpoint), str(control), str(folder)]) == 0

    report = json.loads((folder / REPORT_JSON).read_text())
    assert set(report) == {*ENGINES, "mean_gate"}
    assert [report[name]["overall"]["n"] for name in ENGINES] == [6, 6, 6]
    released = report["released"]["engine"]
    assert report["released"]["against"] is None
    # The control is the same checkpoint with its gate closed, so it answers as that does.
    off, without = (report[name]["against"] for name in ENGINES[1:])
    assert off["engine"] == without["engine"] == released
    assert off == without
    assert {kind: len(means) for kind, means in report["mean_gate"].items()} == dict.fromkeys(GATED, 2)

    picture = Image.open(io.BytesIO((folder / GATES_PNG).read_bytes()))
    assert picture.size == (600, 320)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "family"
    assert all(name in lines[0] for name in ENGINES)
    intervals = r" +(\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\) *){3}"
    assert all(re.fullmatch(rf"\w+{intervals}", line) for line in lines[1:6])  # four families and all
    assert re.fullmatch(rf"p-value against the released one +{off['p_value']:.3g} +{off['p_value']:.3g}", lines[6])
    assert lines[-1].startswith("layer 1")


@pytest.mark.usefixtures("of_two_pictures")
@pytest.mark.parametrize("missing", ["checkpoint", "control"])
def test_a_checkpoint_that_is_not_there_is_one_line(
    trained_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    write_closed_gate(trained_checkpoint, tmp_path / "control")
    given = {"checkpoint": str(trained_checkpoint), "control": str(tmp_path / "control")}
    given[missing] = str(tmp_path / "nowhere")
    assert run_command("report", main, [*given.values(), str(tmp_path)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"report: {tmp_path / 'nowhere'} does not exist")
    assert not (tmp_path / REPORT_JSON).exists()


@pytest.mark.parametrize("swapped", [True, False], ids=["control first", "two with traversal"])
def test_checkpoints_in_the_wrong_places_are_refused_before_anything_is_exported(
    trained_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], swapped: bool
) -> None:
    control = tmp_path / "control"
    write_closed_gate(trained_checkpoint, control)
    given = (control, trained_checkpoint) if swapped else (trained_checkpoint, trained_checkpoint)
    assert run_command("report", main, [*map(str, given), str(tmp_path)]) == 2
    found, expected = ("without", "with") if swapped else ("with", "without")
    assert capsys.readouterr().err == (
        f"report: {given[0] if swapped else given[1]} was trained {found} traversal, expected one trained {expected}: "
        "give the released checkpoint first, then the control\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["control", trained_checkpoint.name]


def test_a_folder_that_is_not_there_is_refused_before_anything_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nowhere"
    assert run_command("report", main, ["a", "b", str(folder)]) == 2
    assert capsys.readouterr().err == (f"report: {folder} is no folder, expected one for the report: create it first\n")
