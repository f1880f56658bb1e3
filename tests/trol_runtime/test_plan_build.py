"""Where no plan fits, one is built from the graphs in the file by another process, and kept for the next start."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import EngineOf
from trol_runtime import plan_build
from trol_runtime.bundle import Bundle
from trol_runtime.errors import TrolError
from trol_runtime.plan_build import build_missing
from trol_runtime.plan_choice import BuiltFor, Device, graphs_sha256, this_platform
from trol_runtime.plan_store import add_plan, find_plan

pytestmark = pytest.mark.usefixtures("cache_of_its_own")
HERE = Device("tensorrt", "10.16.2", "8.7", this_platform())


@pytest.fixture
def engine(micro_engine: EngineOf, tmp_path: Path) -> Path:
    return Path(shutil.copy(micro_engine("internlm2"), tmp_path / "engine.plan"))


def building(monkeypatch: pytest.MonkeyPatch, what: Callable[[Path], None]) -> None:
    """Let the builder's process do this to the file."""

    def run_builder(module: str, target: str, path: str) -> str:
        assert (module, target) == (plan_build.BUILDER, HERE.target)
        what(Path(path))
        return ""

    monkeypatch.setattr(plan_build, "run_builder", run_builder)


def add_built_plan(path: Path, version: str = HERE.version) -> None:
    manifest = Bundle.open(path).manifest
    built_for = BuiltFor(
        target=HERE.target,
        version=version,
        sm=(HERE.sm,),
        platform=HERE.platform,
        limits=manifest.limits,
        precision="fp32",
        weights="shared",
        mixer="function",
        graphs=graphs_sha256(manifest),
    )
    add_plan(path, built_for.plan(("decode",), {}), {"decode": b"a plan"})


def test_what_was_built_is_found_now_and_by_the_next_start(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    building(monkeypatch, add_built_plan)
    built = build_missing(Bundle.open(engine), HERE)
    assert built.read("decode") == b"a plan"
    said = capsys.readouterr().err.splitlines()  # on stderr: stdout is answers
    assert said[1:] == [f"{engine}: building tensorrt plans for SM 8.7; the next start finds them"]
    assert find_plan(Bundle.open(engine), HERE) is not None


def test_a_plan_of_another_jetpack_is_named_before_one_is_built_instead(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_built_plan(engine, version="10.3.0")

    def build(path: Path) -> None:
        print("building", file=sys.stderr)
        add_built_plan(path)

    building(monkeypatch, build)
    assert build_missing(Bundle.open(engine), HERE).read("decode") == b"a plan"
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        f"{engine}: no plan for this machine: found cpu and tensorrt 10.3.0 (JetPack 6.1 or 6.2) "
    )
    assert "; needed tensorrt 10.16.2 (JetPack 7.2) for SM 8.7 on " in said[0]
    assert said[0].endswith(f"; add one with: trol-export --add-target tensorrt {engine}")
    assert said[2] == "building"


def test_where_it_cannot_be_built_one_line_says_what_was_missing_and_why(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise TrolError("no room on the disk; free some")

    building(monkeypatch, refuse)
    with pytest.raises(TrolError) as refused:
        build_missing(Bundle.open(engine), HERE)
    assert str(refused.value).startswith(f"{engine}: no plan for this machine: found cpu")
    assert str(refused.value).endswith("; building one here failed: no room on the disk; free some")


def test_a_build_of_something_else_is_a_bug_that_is_said(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    building(monkeypatch, lambda path: add_built_plan(path, version="10.3.0"))
    with pytest.raises(TrolError, match="what was built here does not fit; please report: trol-inspect --system"):
        build_missing(Bundle.open(engine), HERE)
