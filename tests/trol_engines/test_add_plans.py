"""Plans of further targets in one file: built from its graphs, added behind its end, recorded as what they are."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import EngineOf
from trol_engines import add_plans as module
from trol_engines.add_plans import add_plans, build_mixer_as
from trol_engines.tensorrt_package import TensorRTPackage
from trol_runtime.bundle import Bundle
from trol_runtime.errors import EngineFileError, MissingExtraError, TrolError
from trol_runtime.machine import describe_machine
from trol_runtime.manifest import PlanEntry
from trol_runtime.nvidia_driver import NvidiaDriver
from trol_runtime.plan_choice import entry_of, graphs_sha256

pytest.importorskip("tensorrt_rtx", reason="plans of the target tensorrt-rtx need the extra rtx")
pytestmark = pytest.mark.usefixtures("cache_of_its_own")

ROLES = ("decode", "extend", "prefill", "vision")  # as a manifest, whose keys are sorted, has them


@pytest.fixture
def engine(micro_engine: EngineOf, tmp_path: Path) -> Path:
    return Path(shutil.copy(micro_engine("internlm2", "fp16"), tmp_path / "engine.plan"))


@contextmanager
def silent(name: str) -> Iterator[None]:
    yield


@pytest.fixture
def steps() -> tuple[list[str], Any]:
    """What is said while plans are built, and what says it."""
    said: list[str] = []

    @contextmanager
    def step(name: str) -> Iterator[None]:
        said.append(name)
        yield

    return said, step


def test_plans_of_all_roles_stand_in_the_file_beside_the_cpus(engine: Path, steps: tuple[list[str], Any]) -> None:
    said, step = steps
    before = engine.read_bytes()
    plan = add_plans(engine, "tensorrt-rtx", "shared", step)
    bundle = Bundle.open(engine)
    assert [one.target for one in bundle.manifest.plans] == ["cpu", "tensorrt-rtx"]
    assert bundle.manifest.plans[1] == plan
    assert plan.roles == ROLES
    assert engine.read_bytes().startswith(before)
    assert said == [f"build the tensorrt-rtx plan of {role}" for role in ROLES]


def test_the_record_says_what_was_built_and_for_what(engine: Path) -> None:
    plan = add_plans(engine, "tensorrt-rtx", "shared", silent)
    manifest = Bundle.open(engine).manifest
    assert (plan.precision, plan.weights, plan.mixer) == ("fp16", "shared", "function")
    assert (plan.sm, plan.platform, plan.limits) == ("8.0, 8.6, 8.9, 12.0", None, manifest.limits)
    assert plan.versions == {"tensorrt-rtx": "1.7.1.116"}
    assert plan.graphs == graphs_sha256(manifest)
    assert plan.computes["decode"]["attention"] == "fp16 2"
    assert plan.computes["prefill"]["matrix products"] == "fp32 2, fp16 61"  # the gate's are fp32


def test_a_plan_with_its_weights_inside_is_another_plan(engine: Path) -> None:
    shared = add_plans(engine, "tensorrt-rtx", "shared", silent)
    embedded = add_plans(engine, "tensorrt-rtx", "embedded", silent)
    bundle = Bundle.open(engine)
    assert shared.key != embedded.key
    assert len(bundle.manifest.plans) == 3
    sizes = [bundle.entries[entry_of(plan, "decode")].size for plan in (shared, embedded)]
    assert sizes[0] < sizes[1]


def test_plans_built_again_take_the_place_of_the_former_ones(engine: Path) -> None:
    for _ in range(2):
        add_plans(engine, "tensorrt-rtx", "shared", silent)
    assert [plan.target for plan in Bundle.open(engine).manifest.plans] == ["cpu", "tensorrt-rtx"]


def test_weights_that_are_damaged_are_put_into_no_plan(engine: Path) -> None:
    bundle = Bundle.open(engine)
    with engine.open("r+b") as file:
        file.seek(bundle.arena_offset)
        file.write(b"\xff")
    with pytest.raises(EngineFileError, match=r"blocks of weights\.safetensors damaged"):
        add_plans(engine, "tensorrt-rtx", "embedded", silent)
    assert len(Bundle.open(engine).manifest.plans) == 1


def test_what_this_machine_cannot_build_is_said_before_anything_is_built(
    engine: Path, steps: tuple[list[str], Any]
) -> None:
    said, step = steps
    before = engine.read_bytes()
    with pytest.raises(TrolError) as refused:
        add_plans(engine, "tensorrt", "shared", step)
    assert str(refused.value) == "tensorrt needs an NVIDIA GPU, none to be seen here; build on the device itself"
    assert (said, engine.read_bytes()) == ([], before)


def test_a_build_that_fails_leaves_the_file_as_it_was(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Iterator[tuple[str, PlanEntry]]:
        raise TrolError("no plan today")
        yield

    before = engine.read_bytes()
    monkeypatch.setattr(module, "build_plans", failing)
    with pytest.raises(TrolError, match="no plan today"):
        add_plans(engine, "tensorrt-rtx", "shared", silent)
    assert engine.read_bytes() == before


FULL = TensorRTPackage("tensorrt", SimpleNamespace(__version__="10.16"))  # type: ignore[arg-type]
RTX = TensorRTPackage("tensorrt-rtx", SimpleNamespace(__version__="1.7"))  # type: ignore[arg-type]


def test_the_mixer_is_a_function_where_there_are_no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "register_mixer", lambda *_: pytest.fail("asked for a plugin"))
    assert build_mixer_as(RTX, describe_machine()) == "function"


def test_the_mixer_is_a_plugin_where_it_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "register_mixer", lambda *arguments: asked.append(arguments))
    assert build_mixer_as(FULL, describe_machine()) == "plugin"
    assert asked == [(0, (0, 0))]  # this machine has no GPU


def test_a_mixer_that_becomes_a_function_instead_of_a_plugin_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MissingExtraError("no triton")

    monkeypatch.setattr(module, "register_mixer", refuse)
    with pytest.warns(UserWarning, match="the mixer is built as a function: no triton"):
        assert build_mixer_as(FULL, describe_machine()) == "function"


def test_nothing_is_warned_of_where_nothing_fell_back(engine: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_plans(engine, "tensorrt-rtx", "shared", silent)


def test_the_sm_and_cuda_of_a_machine_are_given_to_the_plugin_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "register_mixer", lambda *arguments: asked.append(arguments))
    gpus = (SimpleNamespace(sm="8.7"),)
    driver = NvidiaDriver("580", "13.0", gpus)  # type: ignore[arg-type]
    build_mixer_as(FULL, replace(describe_machine(), nvidia=driver))
    assert asked == [(87, (13, 0))]
