"""trol-export for further targets: plans beside the CPU's in a new file, or added to one that is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import EngineOf
from recorded_machines import recorded
from trol_engines import add_plans
from trol_runtime.bundle import Bundle
from trol_runtime.engine import TroL

pytest.importorskip("tensorrt_rtx", reason="plans of the target tensorrt-rtx need the extra rtx")
pytestmark = pytest.mark.usefixtures("cache_of_its_own")

TrolExport = Callable[..., Any]


@pytest.fixture
def engine(micro_engine: EngineOf, tmp_path: Path) -> Path:
    return Path(shutil.copy(micro_engine("internlm2", "fp16"), tmp_path / "engine.plan"))


def test_an_export_for_two_targets_has_the_plans_of_both(
    trol_export: TrolExport, micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "engine.plan"
    targets = ["--target", "cpu", "--target", "tensorrt-rtx", "--target", "tensorrt-rtx"]
    ended = trol_export("--checkpoint", micro_checkpoint("internlm2"), "--max-seq", 64, *targets, "-o", path, "--json")
    assert ended.code == 0, ended.stderr
    (plan,) = json.loads(ended.stdout)["plans"]
    manifest = Bundle.open(path).manifest
    assert [one.target for one in manifest.plans] == ["cpu", "tensorrt-rtx"]
    assert plan["key"] == manifest.plans[1].key
    assert "build the tensorrt-rtx plan of decode" in ended.stderr


def test_a_target_is_added_to_a_file_that_still_runs_on_the_cpu(trol_export: TrolExport, engine: Path) -> None:
    before = TroL.load(engine).generate("What is it?", max_new_tokens=4)
    ended = trol_export("--add-target", "tensorrt-rtx", engine)
    assert ended.code == 0, ended.stderr
    assert ended.stdout == f"{engine}: tensorrt-rtx plans of decode, extend, prefill, vision added\n"
    assert TroL.load(engine).generate("What is it?", max_new_tokens=4) == before


def test_weights_can_lie_in_the_plans_and_these_be_legacy_ones(trol_export: TrolExport, engine: Path) -> None:
    forms = ["--weights", "embedded", "--opset", "legacy"]
    plan = json.loads(trol_export("--add-target", "tensorrt-rtx", engine, *forms, "--json").stdout)
    assert (plan["weights"], plan["opset"]) == ("embedded", "legacy")


def test_a_form_that_the_library_does_not_read_is_one_line_and_exit_code_2(
    trol_export: TrolExport, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetson = recorded("thor_jetpack_7_1")
    monkeypatch.setattr(add_plans, "describe_machine", lambda: jetson)
    ended = trol_export("--add-target", "tensorrt", engine, "--opset", "modern")
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr == (
        "trol-export: TensorRT 10.13.3.9 does not read modern graphs (opset 24), 10.15 and newer do; leave out "
        "--opset modern\n"
    )


@pytest.mark.parametrize("source", ["--checkpoint", "--add-target"])
def test_what_cannot_be_built_here_is_one_line_before_any_work(
    trol_export: TrolExport, micro_checkpoint: Callable[..., Path], engine: Path, tmp_path: Path, source: str
) -> None:
    output, before = tmp_path / "new.plan", engine.read_bytes()
    asked = {
        "--checkpoint": [source, micro_checkpoint("internlm2"), "--target", "tensorrt", "-o", output],
        "--add-target": [source, "tensorrt", engine],
    }
    ended = trol_export(*asked[source])
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr == (
        "trol-export: tensorrt needs an NVIDIA GPU, none to be seen here; build on the device itself\n"
    )
    assert not output.exists()
    assert engine.read_bytes() == before


def test_a_file_that_is_no_engine_is_one_line(trol_export: TrolExport, tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"no engine")
    ended = trol_export("--add-target", "tensorrt-rtx", path)
    assert ended.code == 1
    assert ended.stderr == (
        f"trol-export: {path}: not an engine file (no zip header); expected the output of trol-export\n"
    )
