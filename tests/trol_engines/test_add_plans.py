"""Plans of further targets in one file: built from its graphs, added behind its end, recorded as what they are."""

from __future__ import annotations

import shutil
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import EngineOf
from recorded_machines import recorded
from trol_engines import add_plans as module
from trol_engines import plan_set
from trol_engines.add_plans import add_plans, build_mixer_as, keep_plans
from trol_engines.plan_builder import BuiltPlan
from trol_engines.plan_set import PlanForm, RolePlan
from trol_engines.tensorrt_package import TensorRTPackage, import_tensorrt
from trol_runtime.bundle import Bundle
from trol_runtime.bundle_appender import BundleAppender
from trol_runtime.errors import EngineFileError, MissingExtraError, TrolError, UsageError
from trol_runtime.machine import MachineDescription, describe_machine
from trol_runtime.nvidia_driver import NvidiaDriver
from trol_runtime.plan_choice import Device, entry_of, graphs_sha256, this_platform
from trol_runtime.plan_signature import built_here
from trol_runtime.user_cache import cache_directory
from trol_runtime.weight_form import Probe, WeightForm, record_probe

pytest.importorskip("tensorrt_rtx", reason="plans of the target tensorrt-rtx need the extra rtx")
pytestmark = pytest.mark.usefixtures("cache_of_its_own")

ROLES = ("decode", "extend", "prefill", "vision")  # as a manifest, whose keys are sorted, has them


@pytest.fixture
def engine(micro_engine: EngineOf, tmp_path: Path) -> Path:
    return Path(shutil.copy(micro_engine("internlm2", "fp16"), tmp_path / "engine.plan"))


def test_plans_of_all_roles_stand_in_the_file_beside_the_cpus(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = engine.read_bytes()
    plan = add_plans(engine, "tensorrt-rtx", "shared")
    bundle = Bundle.open(engine)
    assert [one.target for one in bundle.manifest.plans] == ["cpu", "tensorrt-rtx"]
    assert bundle.manifest.plans[1] == plan
    assert plan.roles == ROLES
    assert engine.read_bytes().startswith(before)
    lines = capsys.readouterr().err.splitlines()
    said = [f"build the tensorrt-rtx plan of {role} ({number} of 4)" for number, role in enumerate(ROLES, 1)]
    assert [line[: len(one)] for line, one in zip(lines, said, strict=True)] == said
    assert ["left" in line for line in lines] == [True, True, True, False]


def test_the_record_says_what_was_built_and_for_what(engine: Path) -> None:
    plan = add_plans(engine, "tensorrt-rtx", "shared")
    manifest = Bundle.open(engine).manifest
    assert (plan.precision, plan.weights, plan.mixer) == ("fp16", "shared", "function")
    assert (plan.sm, plan.platform, plan.limits) == ("8.0, 8.6, 8.9, 12.0, 12.1", None, manifest.limits)
    assert plan.versions == {"tensorrt-rtx": "1.7.1.116"}
    assert plan.graphs == graphs_sha256(manifest)
    assert plan.computes["decode"]["attention"] == "fp16 2"
    assert plan.computes["prefill"]["matrix products"] == "fp32 2, fp16 61"  # the gate's are fp32


def test_a_plan_with_its_weights_inside_is_another_plan(engine: Path) -> None:
    shared = add_plans(engine, "tensorrt-rtx", "shared")
    embedded = add_plans(engine, "tensorrt-rtx", "embedded")
    bundle = Bundle.open(engine)
    assert shared.key != embedded.key
    assert len(bundle.manifest.plans) == 3
    sizes = [bundle.entries[entry_of(plan, "decode")].size for plan in (shared, embedded)]
    assert sizes[0] < sizes[1]


def test_a_legacy_plan_is_another_plan_beside_the_modern_one(engine: Path) -> None:
    modern = add_plans(engine, "tensorrt-rtx", "shared")
    legacy = add_plans(engine, "tensorrt-rtx", "shared", opset="legacy")
    assert (modern.opset, legacy.opset, legacy.mixer) == ("modern", "legacy", "function")
    assert Bundle.open(engine).manifest.plans[1:] == (modern, legacy)
    assert "KV cache" in modern.computes["decode"]
    assert "KV cache" not in legacy.computes["decode"]  # it is written by whoever runs the plan


def test_plans_built_again_take_the_place_of_the_former_ones(engine: Path) -> None:
    for _ in range(2):
        add_plans(engine, "tensorrt-rtx", "shared")
    assert [plan.target for plan in Bundle.open(engine).manifest.plans] == ["cpu", "tensorrt-rtx"]


def test_weights_that_are_damaged_are_put_into_no_plan(engine: Path) -> None:
    bundle = Bundle.open(engine)
    with engine.open("r+b") as file:
        file.seek(bundle.arena_offset)
        file.write(b"\xff")
    with pytest.raises(EngineFileError, match=r"blocks of weights\.safetensors damaged"):
        add_plans(engine, "tensorrt-rtx", "embedded")
    assert len(Bundle.open(engine).manifest.plans) == 1


def test_what_this_machine_cannot_build_is_said_before_anything_is_built(
    engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = engine.read_bytes()
    with pytest.raises(TrolError) as refused:
        add_plans(engine, "tensorrt", "shared")
    assert str(refused.value) == "tensorrt needs an NVIDIA GPU, none to be seen here; build on the device itself"
    assert (capsys.readouterr().err, engine.read_bytes()) == ("", before)


def test_a_gpu_that_says_nothing_of_itself_is_told_of_before_anything_is_built(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = recorded("rtx_4090")
    assert machine.nvidia is not None
    gpus = (replace(machine.nvidia.gpus[0], sm=None),)
    machine = replace(machine, nvidia=replace(machine.nvidia, gpus=gpus))
    trt: Any = SimpleNamespace(__version__="10.16.2")
    monkeypatch.setattr(module, "describe_machine", lambda: machine)
    monkeypatch.setattr(module, "require_buildable", lambda *_, **__: None)
    monkeypatch.setattr(module, "import_tensorrt", lambda target: TensorRTPackage("tensorrt", trt))
    monkeypatch.setattr(module, "register_mixer", lambda *_: None)
    monkeypatch.setattr(module, "build_plans", lambda *_: pytest.fail("built before it was refused"))
    with pytest.raises(TrolError, match="the GPU's compute capability is not known here"):
        add_plans(engine, "tensorrt", "shared")


def test_what_a_probe_here_found_is_how_weights_go_into_plans_unless_told(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(package: object, bundle: object, form: PlanForm) -> Iterator[Any]:
        asked.append(form.weights)
        raise TrolError("noted")
        yield

    monkeypatch.setattr(module, "build_plans", note)
    version = import_tensorrt("tensorrt-rtx").version
    probed = Device("tensorrt-rtx", version, "8.9", this_platform())
    record_probe(Probe(shared_us=30, embedded_us=20), probed, "fp16")
    for machine, chosen in (("rtx_4090", None), ("rtx_4090", "shared"), ("no_gpu", None)):
        monkeypatch.setattr(module, "describe_machine", lambda machine=machine: with_rtx(recorded(machine)))
        with pytest.raises(TrolError, match="noted"):
            add_plans(engine, "tensorrt-rtx", chosen)  # type: ignore[arg-type]
    assert asked == ["embedded", "shared", "shared"]


@pytest.mark.parametrize("takes_weights", [True, False])
@pytest.mark.parametrize("enough", [True, False])
def test_a_probe_is_not_heeded_where_the_copies_do_not_fit_or_the_library_takes_none(
    engine: Path, takes_weights: bool, enough: bool
) -> None:
    bundle, machine = Bundle.open(engine), recorded("rtx_4090")
    weights = sum(tensor.nbytes for tensor in bundle.manifest.tensors.values())
    assert machine.nvidia is not None
    gpu = replace(machine.nvidia.gpus[0], memory=6 * weights - (not enough))
    machine = replace(machine, nvidia=replace(machine.nvidia, gpus=(gpu,)))
    parser = SimpleNamespace(load_initializer=None) if takes_weights else SimpleNamespace()
    package = TensorRTPackage("tensorrt", SimpleNamespace(OnnxParser=parser))  # type: ignore[arg-type]
    assert module._can_embed(package, machine, bundle) == (takes_weights and enough)


@pytest.mark.parametrize(("machine", "copies"), [("rtx_4090", 3), ("orin_nano_jetpack_7_2", 4)])
def test_on_a_jetson_what_the_host_reads_lies_in_the_gpus_memory_too(engine: Path, machine: str, copies: int) -> None:
    bundle = Bundle.open(engine)
    weights = sum(tensor.nbytes for tensor in bundle.manifest.tensors.values())
    package = TensorRTPackage("tensorrt", SimpleNamespace(OnnxParser=SimpleNamespace(load_initializer=None)))  # type: ignore[arg-type]
    assert module._can_embed(package, with_memory(recorded(machine), 2 * copies * weights), bundle)
    assert not module._can_embed(package, with_memory(recorded(machine), 2 * copies * weights - 1), bundle)


def with_memory(machine: MachineDescription, memory: int) -> MachineDescription:
    assert machine.nvidia is not None
    return replace(machine, nvidia=replace(machine.nvidia, gpus=(replace(machine.nvidia.gpus[0], memory=memory),)))


@pytest.mark.parametrize("sm", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_every_gpu_that_rtx_runs_on_has_plans_built_for_it(
    engine: Path, monkeypatch: pytest.MonkeyPatch, sm: str
) -> None:
    def note(package: object, bundle: object, form: PlanForm) -> Iterator[Any]:
        assert form.only_sm == ("7.5" if sm == "7.5" else None)
        yield RolePlan("decode", BuiltPlan(b"plan", {}, 1))

    machine = with_rtx(recorded("rtx_4090"))
    assert machine.nvidia is not None
    gpus = (replace(machine.nvidia.gpus[0], sm=sm),)
    machine = replace(machine, nvidia=replace(machine.nvidia, gpus=gpus))
    monkeypatch.setattr(module, "describe_machine", lambda: machine)
    monkeypatch.setattr(module, "require_buildable", lambda *_, **__: None)
    monkeypatch.setattr(module, "built_types", lambda trt, plan: {})
    monkeypatch.setattr(module, "build_plans", note)
    assert sm in (add_plans(engine, "tensorrt-rtx").sm or "").split(", ")


def with_rtx(machine: MachineDescription) -> MachineDescription:
    """The machine with what builds plans installed as it is here."""
    return replace(machine, packages=describe_machine().packages)


def test_a_file_that_cannot_be_added_to_is_refused_before_anything_is_built(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> Iterator[RolePlan]:
        raise AssertionError("built for nothing")

    monkeypatch.setattr(module, "build_plans", build)
    with BundleAppender(engine), pytest.raises(TrolError, match="another process is adding to it"):
        add_plans(engine, "tensorrt-rtx", "shared")


def test_plans_for_this_machine_are_kept_in_the_file(engine: Path) -> None:
    assert keep_plans(engine, "tensorrt-rtx") == engine
    assert [plan.target for plan in Bundle.open(engine).manifest.plans] == ["cpu", "tensorrt-rtx"]


def test_plans_for_this_machine_are_kept_in_the_cache_where_the_file_takes_none(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(appender: BundleAppender) -> BundleAppender:  # permissions would not stop a test that runs as root
        raise TrolError("cannot be written (Read-only file system)")

    before = engine.read_bytes()
    monkeypatch.setattr(BundleAppender, "__enter__", refuse)
    assert cache_directory() in keep_plans(engine, "tensorrt-rtx").parents
    assert engine.read_bytes() == before


def test_a_build_that_fails_leaves_the_file_as_it_was(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Iterator[RolePlan]:
        yield RolePlan("decode", BuiltPlan(b"a plan", {}, 1))
        raise TrolError("no plan today")

    before = engine.read_bytes()
    monkeypatch.setattr(module, "build_plans", failing)
    with pytest.raises(TrolError, match="no plan today"):
        add_plans(engine, "tensorrt-rtx", "shared")
    assert engine.read_bytes() == before
    assert list(engine.parent.iterdir()) == [engine]


def test_an_interrupted_build_leaves_nothing_beside_the_file(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[RolePlan]:
        yield RolePlan("decode", BuiltPlan(b"a plan", {}, 1))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "build_plans", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_plans(engine, "tensorrt-rtx", "shared")
    assert list(engine.parent.iterdir()) == [engine]


@pytest.mark.parametrize("weights", ["shared", "embedded"])
def test_while_a_plan_is_built_the_one_before_lies_on_the_disk(
    engine: Path, monkeypatch: pytest.MonkeyPatch, weights: WeightForm
) -> None:
    """With its weights inside, one may be all that memory holds."""
    built: list[weakref.ref[BuiltPlan]] = []

    def build(*_: object) -> BuiltPlan:
        assert [one() for one in built] == [None] * len(built)
        plan = BuiltPlan(f"plan {len(built)}".encode(), {}, 1)
        built.append(weakref.ref(plan))
        return plan

    monkeypatch.setattr(plan_set, "build_plan", build)
    plan = add_plans(engine, "tensorrt-rtx", weights)
    bundle = Bundle.open(engine)
    assert [bundle.read(entry) for entry in plan.entries] == [f"plan {number}".encode() for number in range(4)]


# On a GPU what was built is looked at; not run on one yet


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A build on a board, of plans that are none; those that were inspected."""
    inspected: list[bytes] = []

    def inspect(trt: object, plan: bytes) -> dict[str, int]:
        inspected.append(plan)
        return {"fp16": len(inspected)}

    def build(*_: object) -> Iterator[RolePlan]:
        for role in ROLES:
            yield RolePlan(role, BuiltPlan(f"a plan of {role}".encode(), {"norms": {"FLOAT": 5}}, 1))

    trt: Any = SimpleNamespace(__version__="10.16.2")
    monkeypatch.setattr(module, "describe_machine", lambda: recorded("orin_nano_jetpack_7_2"))
    monkeypatch.setattr(module, "import_tensorrt", lambda target: TensorRTPackage("tensorrt", trt))
    monkeypatch.setattr(module, "register_mixer", lambda *_: None)
    monkeypatch.setattr(module, "build_plans", build)
    monkeypatch.setattr(module, "built_types", inspect)
    return inspected


def test_on_a_gpu_the_record_says_what_was_built_beside_what_was_asked(engine: Path, orin: list[bytes]) -> None:
    plan = add_plans(engine, "tensorrt", "shared")
    assert plan.computes["extend"] == {"norms": "fp32 5", "as built": "fp16 2"}
    bundle = Bundle.open(engine)
    assert bundle.manifest.plans[1:] == (plan,)
    assert orin == [bundle.read(entry) for entry in plan.entries]
    assert built_here(plan, bundle.manifest.sha256.entries)


def test_a_plan_of_tensorrt_is_recorded_for_the_model_of_gpu_that_built_it(engine: Path, orin: list[bytes]) -> None:
    plan = add_plans(engine, "tensorrt", "shared")
    assert (plan.sm, plan.gpu) == ("8.7", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super")
    assert plan.platform == this_platform()


def test_plans_are_kept_before_anybody_looks_into_them(
    engine: Path, orin: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(trt: object, plan: bytes) -> dict[str, int]:
        raise SystemExit("killed: out of memory")

    monkeypatch.setattr(module, "built_types", die)
    with pytest.raises(SystemExit):
        add_plans(engine, "tensorrt", "shared")
    (plan,) = Bundle.open(engine).manifest.plans[1:]
    assert plan.computes["extend"] == {"norms": "fp32 5"}
    assert Bundle.open(engine).read(plan.entries[0]) == b"a plan of decode"


def test_a_record_that_cannot_be_completed_is_a_warning_and_no_lost_plan(
    engine: Path, orin: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TrolError("another process is adding to it")

    monkeypatch.setattr(module, "describe_plan", refuse)
    said = "the plans are kept; which types were built is not recorded: another process is adding to it"
    with pytest.warns(UserWarning, match=said):
        plan = add_plans(engine, "tensorrt", "shared")
    assert Bundle.open(engine).manifest.plans[1:] == (plan,)


@pytest.mark.parametrize(
    ("inlined", "recorded_as"), [((0, 0), "plugin"), ((2, 0), "function"), ((2, 2), "function")], ids=str
)
def test_the_mixer_is_recorded_as_what_it_became(
    engine: Path, orin: list[bytes], monkeypatch: pytest.MonkeyPatch, inlined: tuple[int, int], recorded_as: str
) -> None:
    counts = dict(zip(("prefill", "extend"), inlined, strict=True))

    def build(*_: object) -> Iterator[RolePlan]:
        for role in ROLES:
            yield RolePlan(role, BuiltPlan(b"a plan", {}, 1), counts.get(role, 0))

    monkeypatch.setattr(module, "build_plans", build)
    without = ", ".join(role for role in ROLES if counts.get(role))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan = add_plans(engine, "tensorrt", "shared")
    assert plan.mixer == recorded_as
    assert [str(one.message) for one in said] == [
        f"tensorrt 10.16.2 built the mixer of {without} as a function, expected the plugin that is registered; the "
        "plans run without it; please report: trol-inspect --system"
    ] * bool(without)


@pytest.mark.parametrize(("version", "form"), [("10.3.0", "legacy"), ("10.14.1", "legacy"), ("10.16", "modern")])
def test_without_a_choice_plans_are_of_the_form_that_the_library_reads(
    engine: Path, monkeypatch: pytest.MonkeyPatch, version: str, form: str
) -> None:
    asked = []

    def note(package: object, bundle: object, form: PlanForm) -> Iterator[Any]:
        asked.append(form)
        raise TrolError("noted")
        yield

    trt: Any = SimpleNamespace(__version__=version)
    monkeypatch.setattr(module, "describe_machine", lambda: recorded("orin_nano_jetpack_7_2"))
    monkeypatch.setattr(module, "import_tensorrt", lambda target: TensorRTPackage("tensorrt", trt))
    monkeypatch.setattr(module, "register_mixer", lambda *_: None)
    monkeypatch.setattr(module, "build_plans", note)
    with pytest.raises(TrolError, match="noted"):
        add_plans(engine, "tensorrt", "shared")
    # Written out, the mixer of a legacy graph is no node that a plugin could take the place of.
    assert asked == [PlanForm("shared", "function" if form == "legacy" else "plugin", form)]  # type: ignore[arg-type]


def test_a_library_that_puts_no_weights_into_plans_says_so(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt: Any = SimpleNamespace(__version__="10.3.0", OnnxParser=SimpleNamespace(parse=None))
    monkeypatch.setattr(module, "describe_machine", lambda: recorded("orin_nano_jetpack_7_2"))
    monkeypatch.setattr(module, "import_tensorrt", lambda target: TensorRTPackage("tensorrt", trt))
    with pytest.raises(UsageError) as refused:
        add_plans(engine, "tensorrt", "embedded")
    assert str(refused.value) == (
        "tensorrt 10.3.0 cannot put the weights into plans, 10.13 and newer can; leave out --weights embedded"
    )


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
        add_plans(engine, "tensorrt-rtx", "shared")


def test_the_sm_and_cuda_of_a_machine_are_given_to_the_plugin_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "register_mixer", lambda *arguments: asked.append(arguments))
    gpus = (SimpleNamespace(sm="8.7"),)
    driver = NvidiaDriver("580", "13.0", gpus)  # type: ignore[arg-type]
    build_mixer_as(FULL, replace(describe_machine(), nvidia=driver))
    assert asked == [(87, (13, 0))]
