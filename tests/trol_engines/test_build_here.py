"""What `trol-run` starts where it finds no plan: builds those of this machine and keeps them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import EngineOf
from trol_runtime.builder_process import run_builder
from trol_runtime.bundle import Bundle
from trol_runtime.errors import TrolError
from trol_runtime.plan_build import BUILDER
from trol_runtime.plan_signature import built_here

pytest.importorskip("tensorrt_rtx", reason="plans of the target tensorrt-rtx need the extra rtx")
pytestmark = pytest.mark.usefixtures("cache_of_its_own")


@pytest.fixture
def engine(micro_engine: EngineOf, tmp_path: Path) -> Path:
    return Path(shutil.copy(micro_engine("internlm2", "fp16"), tmp_path / "engine.plan"))


def test_plans_of_all_roles_are_built_and_kept_in_the_file(engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_builder(BUILDER, "tensorrt-rtx", str(engine)) == ""
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("build the tensorrt-rtx plan of decode (1 of 4)")
    assert said[-1] == f"kept in {engine}"
    bundle = Bundle.open(engine)
    plan = bundle.manifest.plans[-1]
    assert (plan.target, plan.roles) == ("tensorrt-rtx", ("decode", "extend", "prefill", "vision"))
    assert built_here(plan, bundle.manifest.sha256.entries)
    assert all(bundle.read(entry) for entry in plan.entries)


def test_what_cannot_be_built_here_comes_back_as_its_line(engine: Path) -> None:
    before = engine.read_bytes()
    with pytest.raises(TrolError) as refused:
        run_builder(BUILDER, "tensorrt", str(engine))
    assert str(refused.value) == "tensorrt needs an NVIDIA GPU, none to be seen here; build on the device itself"
    assert engine.read_bytes() == before


def test_a_file_that_is_no_engine_comes_back_as_a_line(tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"no engine")
    with pytest.raises(TrolError, match=r"engine.plan: not an engine file \(no zip header\)"):
        run_builder(BUILDER, "tensorrt-rtx", str(path))
