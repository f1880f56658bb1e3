"""Backends by name: the CPU by default, a GPU where machine, packages and plans are there, else one line on why not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import EngineOf
from recorded_machines import recorded
from small_prompts import picture

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.cuda import FakeRuntime
from fake_gpu.engine import plans_of
from fake_gpu.tensorrt import FakeTensorRT
from trol_runtime import TroL, backends, cuda_device, machine, plan_build
from trol_runtime.backends import open_backend
from trol_runtime.bundle import Bundle
from trol_runtime.cpu_backend import CpuBackend
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.gpu_backend import GpuBackend
from trol_runtime.plan_choice import BuiltFor, graphs_sha256
from trol_runtime.plan_store import StoredPlan, add_plan
from trol_runtime.tensorrt_plan import TensorRTPlan

pytestmark = pytest.mark.usefixtures("cache_of_its_own")
VERSION = "1.7.1.116"
PICTURE = picture(40, 40)


@pytest.fixture
def engine(micro_engine: EngineOf, tmp_path: Path) -> Path:
    return Path(shutil.copy(micro_engine("internlm2"), tmp_path / "engine.plan"))


@pytest.fixture
def rtx_pc(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """A PC with an RTX 4090 and everything installed, as far as this process can tell."""
    cuda = FakeRuntime()
    packages = {"tensorrt-rtx": VERSION, "cuda-bindings": "13.5.0"}
    pc = recorded("rtx_4090")
    pc = replace(pc, packages={**pc.packages, **packages})
    monkeypatch.setattr(machine, "describe_machine", lambda: pc)
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRT(cuda))
    return cuda


@pytest.fixture
def no_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which plans run, but are not built."""

    def refuse(*words: str) -> str:
        raise TrolError("onnx is missing")

    monkeypatch.setattr(plan_build, "run_builder", refuse)


def add_fake_plan(engine: Path, **changes: object) -> None:
    """What a build for RTX would have added to the file."""
    bundle = Bundle.open(engine)
    built_for = BuiltFor(
        target="tensorrt-rtx",
        version=VERSION,
        sm=("8.6", "8.9"),
        platform=None,
        limits=bundle.manifest.limits,
        precision="fp32",
        weights="shared",
        mixer="function",
        graphs=graphs_sha256(bundle.manifest),
    )
    plans = plans_of(bundle)
    add_plan(engine, replace(built_for, **changes).plan(tuple(plans), {}), plans)  # type: ignore[arg-type]


def test_an_engine_runs_on_the_cpu_by_default(engine: Path) -> None:
    assert isinstance(TroL.load(engine)._backend, CpuBackend)


def test_an_engine_with_a_plan_for_it_runs_on_the_gpu_and_says_the_same(engine: Path, rtx_pc: FakeRuntime) -> None:
    add_fake_plan(engine)
    model = TroL.load(engine, backend="tensorrt-rtx")
    assert isinstance(model._backend, GpuBackend)
    said = [one.generate("What is it?", [PICTURE], max_new_tokens=6) for one in (model, TroL.load(engine))]
    assert said[0] == said[1]


def test_without_a_plan_one_is_built_and_runs(
    engine: Path, rtx_pc: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_builder(module: str, target: str, path: str) -> str:
        assert target == "tensorrt-rtx"
        add_fake_plan(Path(path))
        return ""

    monkeypatch.setattr(plan_build, "run_builder", run_builder)
    assert isinstance(TroL.load(engine, backend="tensorrt-rtx")._backend, GpuBackend)


def test_without_a_plan_where_none_can_be_built_one_line_has_the_command(
    engine: Path, rtx_pc: FakeRuntime, no_builder: None
) -> None:
    with pytest.raises(TrolError) as refused:
        TroL.load(engine, backend="tensorrt-rtx")
    assert str(refused.value).startswith(f"{engine}: no plan for this machine: found cpu")
    assert f"needed tensorrt-rtx {VERSION} for SM 8.9 on " in str(refused.value)
    assert f"add one with: trol-export --add-target tensorrt-rtx {engine}" in str(refused.value)
    assert str(refused.value).endswith("; building one here failed: onnx is missing")


OTHERS: list[dict[str, object]] = [{"version": "1.6.0"}, {"sm": ("8.6",)}, {"gpu": "NVIDIA GeForce RTX 4080"}]


@pytest.mark.parametrize("change", OTHERS, ids=["version", "SM", "GPU"])
def test_a_plan_of_another_version_or_gpu_never_reaches_tensorrt(
    engine: Path, rtx_pc: FakeRuntime, no_builder: None, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    add_fake_plan(engine, **change)
    monkeypatch.setattr(FakeTensorRT, "Runtime", lambda *_: pytest.fail("a plan reached TensorRT"))
    with pytest.raises(TrolError, match="no plan for this machine: found cpu and tensorrt-rtx"):
        open_backend("tensorrt-rtx", Bundle.open(engine))


def test_plans_are_read_one_at_a_time(engine: Path, rtx_pc: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may hold all weights, and on a Jetson the GPU's memory is the host's."""
    done = []

    def noting(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*words: Any, **named: Any) -> Any:
            done.append(what)
            return method(*words, **named)

        return noted

    add_fake_plan(engine)
    monkeypatch.setattr(StoredPlan, "__getitem__", noting("read", StoredPlan.__getitem__))
    monkeypatch.setattr(TensorRTPlan, "__init__", noting("loaded", TensorRTPlan.__init__))
    open_backend("tensorrt-rtx", Bundle.open(engine))
    assert done == ["read", "loaded"] * 4


@pytest.mark.parametrize(
    "error",
    [ImportError("libnvinfer.so.10: cannot open shared object file"), OSError("libcudart.so.13:\nno file")],
)
def test_a_library_that_cannot_be_loaded_is_one_line(
    engine: Path, rtx_pc: FakeRuntime, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(backends, "import_module", fail)
    with pytest.raises(TrolError) as refused:
        open_backend("tensorrt-rtx", Bundle.open(engine))
    said = " ".join(str(error).split())
    assert str(refused.value) == f"tensorrt_rtx is installed and cannot be loaded ({said}); install it again"


def test_a_plan_of_somebody_else_runs_only_when_trusted(
    engine: Path, rtx_pc: FakeRuntime, no_builder: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_fake_plan(engine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another user"))
    with pytest.raises(TrolError, match=r"was signed by another user, or changed since; .*--trust-plans"):
        open_backend("tensorrt-rtx", Bundle.open(engine))
    assert isinstance(open_backend("tensorrt-rtx", Bundle.open(engine), trust_plans=True), GpuBackend)


def test_a_machine_without_a_gpu_is_told_so(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "describe_machine", lambda: recorded("no_gpu"))
    with pytest.raises(TrolError) as refused:
        open_backend("tensorrt-rtx", Bundle.open(engine))
    assert str(refused.value) == "tensorrt-rtx needs an NVIDIA GPU, none to be seen here; run the target cpu"


def test_another_name_is_refused_before_the_file_is_opened() -> None:
    with pytest.raises(
        UsageError, match="unknown backend 'tpu'; this version runs engines on: cpu, cuda, tensorrt-rtx"
    ):
        TroL.load("no such file", backend="tpu")
