"""What a plan was built for makes its key; only one for this machine and engine is chosen, and else it is said why."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recorded_machines import recorded
from small_engine import write_small_engine
from small_plan import SMALL_DEVICE, small_built_for, small_plan
from trol_runtime.bundle import Bundle
from trol_runtime.errors import EngineFileError
from trol_runtime.manifest import GraphEntry, Limits, Manifest
from trol_runtime.plan_choice import Device, entry_of, fitting, gpu_model, graphs_sha256, none_fits, this_platform
from trol_runtime.zip_records import is_plain_name


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Bundle.open(write_small_engine(tmp_path_factory.mktemp("small") / "engine.plan")).manifest


DIFFERENCES: list[dict[str, Any]] = [
    {"target": "tensorrt-rtx"},
    {"version": "10.16.2.11"},
    {"sm": ("8.9",)},
    {"sm": ("8.7", "8.9")},
    {"platform": "linux-x86_64"},
    {"platform": None},
    {"limits": Limits(128, 4)},
    {"precision": "int8"},
    {"weights": "embedded"},
    {"mixer": "function"},
    {"opset": "legacy"},
    {"graphs": "00"},
    {"gpu": "NVIDIA Jetson AGX Orin Developer Kit"},
]


def test_a_key_can_be_read_and_stands_in_entry_names(manifest: Manifest) -> None:
    plan = small_plan(manifest)
    assert plan.key.startswith("10.16.2.10-sm8.7-fp16-")
    assert plan.entries == (f"plans/tensorrt/{plan.key}/prefill.plan", f"plans/tensorrt/{plan.key}/decode.plan")
    assert all(is_plain_name(entry) for entry in plan.entries)


def test_a_key_is_that_of_equal_plans_only(manifest: Manifest) -> None:
    keys = {small_built_for(manifest, **difference).key for difference in ({}, *DIFFERENCES)}
    assert len(keys) == 1 + len(DIFFERENCES)
    assert small_built_for(manifest).key == small_built_for(manifest).key


COMPUTES = {"decode": {"attention": "fp16 2", "norms": "fp32 5"}}


def test_a_record_says_what_the_plan_was_built_for(manifest: Manifest) -> None:
    built_for = small_built_for(manifest, sm=("8.6", "8.9"), opset="legacy", gpu="Orin")
    plan = built_for.plan(["decode"], {"cuda": "13.0"}, COMPUTES)
    assert (plan.sm, plan.gpu, plan.platform, plan.limits) == ("8.6, 8.9", "Orin", "linux-aarch64", manifest.limits)
    assert (plan.weights, plan.mixer, plan.opset) == ("shared", "plugin", "legacy")
    assert plan.graphs == graphs_sha256(manifest)
    assert plan.versions == {"tensorrt": "10.16.2.10", "cuda": "13.0"}
    assert (plan.precision, plan.computes) == ("fp16", COMPUTES)
    assert plan.signature is None


def test_each_role_has_its_entry(manifest: Manifest) -> None:
    plan = small_plan(manifest)
    assert entry_of(plan, "decode") == plan.entries[1]
    with pytest.raises(EngineFileError) as caught:
        entry_of(plan, "vision")
    assert str(caught.value) == (
        f"tensorrt plan {plan.key} has no vision, only prefill, decode; export the engine again"
    )


def test_a_plan_for_this_machine_and_engine_fits(manifest: Manifest) -> None:
    plan = small_plan(manifest)
    assert fitting([plan], manifest, SMALL_DEVICE) == [plan]


@pytest.mark.parametrize(
    "difference", [{"sm": ("8.6", "8.7")}, {"platform": None}, {"precision": "int8"}, {"opset": "legacy"}]
)
def test_a_plan_that_runs_on_more_than_this_machine_fits_too(manifest: Manifest, difference: dict[str, Any]) -> None:
    plan = small_plan(manifest, **difference)
    assert fitting([plan], manifest, SMALL_DEVICE) == [plan]


@pytest.mark.parametrize(
    "device",
    [
        replace(SMALL_DEVICE, target="tensorrt-rtx"),
        replace(SMALL_DEVICE, version="10.16.2"),
        replace(SMALL_DEVICE, version="10.16.2.11"),
        replace(SMALL_DEVICE, sm="8.9"),
        replace(SMALL_DEVICE, sm="8"),
        replace(SMALL_DEVICE, sm=""),
        replace(SMALL_DEVICE, platform="linux-x86_64"),
    ],
    ids=str,
)
def test_a_plan_for_another_machine_never_fits(manifest: Manifest, device: Device) -> None:
    assert fitting([small_plan(manifest)], manifest, device) == []


AGX_ORIN, ORIN_NANO = (
    gpu_model("tensorrt", recorded(name)) for name in ("agx_orin_with_tensorrt_11", "orin_nano_jetpack_7_2")
)


def test_a_plan_for_one_model_of_gpu_fits_no_other_of_its_compute_capability(manifest: Manifest) -> None:
    plan = small_plan(manifest, gpu=AGX_ORIN)
    assert fitting([plan], manifest, replace(SMALL_DEVICE, gpu=AGX_ORIN)) == [plan]
    assert fitting([plan], manifest, replace(SMALL_DEVICE, gpu=ORIN_NANO)) == []
    assert fitting([plan], manifest, replace(SMALL_DEVICE, gpu=None)) == []


def test_a_plan_whose_record_names_no_gpu_goes_by_its_compute_capability(manifest: Manifest) -> None:
    """Those for RTX run on all of one."""
    plan = small_plan(manifest)
    assert plan.gpu is None
    assert fitting([plan], manifest, replace(SMALL_DEVICE, gpu=ORIN_NANO)) == [plan]


def test_gpus_of_one_compute_capability_are_told_apart_by_name_and_on_a_jetson_by_the_board() -> None:
    assert gpu_model("tensorrt", recorded("rtx_4090")) == "NVIDIA GeForce RTX 4090"
    assert AGX_ORIN == "NVIDIA Jetson AGX Orin Developer Kit"
    assert ORIN_NANO == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert gpu_model("tensorrt", recorded("no_gpu")) is None


def test_plans_for_rtx_are_bound_to_no_model_of_gpu() -> None:
    assert gpu_model("tensorrt-rtx", recorded("rtx_4090")) is None


def test_a_plan_of_other_limits_or_other_graphs_never_fits(manifest: Manifest) -> None:
    plans = [small_plan(manifest, limits=Limits(64, 5)), small_plan(manifest, graphs="00")]
    assert fitting(plans, manifest, SMALL_DEVICE) == []


def test_a_plan_for_the_cpu_never_fits_a_gpu(manifest: Manifest) -> None:
    (cpu,) = manifest.plans
    assert cpu.target == "cpu"
    assert fitting([cpu], manifest, SMALL_DEVICE) == []
    assert fitting([cpu], manifest, replace(SMALL_DEVICE, target="cpu", sm="")) == []


def test_of_plans_that_fit_the_last_added_comes_first(manifest: Manifest) -> None:
    first, last = small_plan(manifest), small_plan(manifest, weights="embedded")
    assert fitting([first, last], manifest, SMALL_DEVICE) == [last, first]


def test_graphs_are_known_by_their_bytes(manifest: Manifest) -> None:
    hashes = manifest.sha256.entries
    other = replace(manifest, sha256=replace(manifest.sha256, entries={**hashes, "graphs/decode.onnx": "00"}))
    assert graphs_sha256(other) != graphs_sha256(manifest)
    added = replace(manifest, sha256=replace(manifest.sha256, entries={**hashes, "plans/more": "00"}))
    assert graphs_sha256(added) == graphs_sha256(manifest)


def test_graphs_that_have_no_hash_are_no_crash(manifest: Manifest) -> None:
    """A manifest written to do harm may name the weights as a graph."""
    graphs = {"prefill": GraphEntry("weights.safetensors", (), ())}
    assert len(graphs_sha256(replace(manifest, graphs=graphs))) == 64


def test_when_none_fits_one_line_says_what_was_found_what_is_needed_and_what_to_do(manifest: Manifest) -> None:
    plans = (*manifest.plans, small_plan(manifest, version="10.3.0", limits=Limits(4096, 5)))
    assert none_fits(Path("/engine.plan"), replace(manifest, plans=plans), SMALL_DEVICE) == (
        "/engine.plan: no plan for this machine: found cpu and tensorrt 10.3.0 (JetPack 6.1 or 6.2) for SM 8.7 on "
        "linux-aarch64, 4,096 tokens, 5 rows; needed tensorrt 10.16.2.10 (JetPack 7.2) for SM 8.7 on linux-aarch64, "
        "128 tokens, 5 rows; add one with: trol-export --add-target tensorrt /engine.plan"
    )


def test_a_plan_for_another_gpu_of_the_same_compute_capability_is_named_with_both(manifest: Manifest) -> None:
    plans = (small_plan(manifest, version="10.15.1", gpu=AGX_ORIN),)
    here = replace(SMALL_DEVICE, version="10.15.1", gpu=ORIN_NANO)
    message = none_fits(Path("engine.plan"), replace(manifest, plans=plans), here)
    assert f"found tensorrt 10.15.1 for SM 8.7 ({AGX_ORIN}) on linux-aarch64, 128 tokens" in message
    assert f"needed tensorrt 10.15.1 for SM 8.7 ({ORIN_NANO}) on linux-aarch64, 128 tokens" in message


def test_rtx_has_no_jetpack(manifest: Manifest) -> None:
    plans = (small_plan(manifest, target="tensorrt-rtx", version="10.3.0"),)
    message = none_fits(Path("engine.plan"), replace(manifest, plans=plans), SMALL_DEVICE)
    assert "found tensorrt-rtx 10.3.0 for SM 8.7 on linux-aarch64" in message


def test_a_plan_that_differs_in_its_graphs_alone_is_told_apart(manifest: Manifest) -> None:
    plans = (small_plan(manifest, graphs="00", platform=None),)
    message = none_fits(Path("engine.plan"), replace(manifest, plans=plans), SMALL_DEVICE)
    assert (
        "found tensorrt 10.16.2.10 (JetPack 7.2) for SM 8.7, 128 tokens, 5 rows, built from other graphs; needed"
        in message
    )


def test_a_file_without_plans_says_so(manifest: Manifest) -> None:
    message = none_fits(Path("engine.plan"), replace(manifest, plans=()), SMALL_DEVICE)
    assert message.startswith(
        "engine.plan: no plan for this machine: found none; needed tensorrt 10.16.2.10 (JetPack 7.2) for SM 8.7"
    )


def test_many_plans_still_make_one_line_with_the_command_at_its_end(manifest: Manifest) -> None:
    plans = tuple(small_plan(manifest, version=f"10.{minor}.0") for minor in range(20))
    message = none_fits(Path("engine.plan"), replace(manifest, plans=plans), SMALL_DEVICE)
    assert len(message) <= 500
    assert "; needed tensorrt 10.16.2.10 (JetPack 7.2) for SM 8.7 on linux-aarch64, 128 tokens, 5 rows; " in message
    assert message.endswith("add one with: trol-export --add-target tensorrt engine.plan")


def test_a_platform_is_system_and_processor() -> None:
    assert this_platform() == f"{platform.system().lower()}-{platform.machine().lower()}"
