"""Combinations known not to work: found where they are, not found beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recorded_machines import NAMES, recorded
from trol_runtime.known_conflicts import Conflict, known_conflicts, onnxruntime_conflict
from trol_runtime.machine import MachineDescription

INT8 = "INT8 Q/DQ on SM 8.7 with TensorRT 10.16.2.10"
RTX = "TensorRT-RTX on Jetson"
TENSORRT_11 = "TensorRT 11 on JetPack"
ONNXRUNTIMES = "onnxruntime beside onnxruntime-gpu"


def names(machine: MachineDescription) -> list[str]:
    return [conflict.name for conflict in known_conflicts(machine)]


def the(name: str, machine: MachineDescription) -> Conflict:
    return next(conflict for conflict in known_conflicts(machine) if conflict.name == name)


def with_packages(machine: MachineDescription, **versions: str | None) -> MachineDescription:
    """The machine with other packages; `_` in a name stands for `-`."""
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    return replace(machine, packages={**machine.packages, **named})


def with_jetson_linux(machine: MachineDescription, l4t: str | None, jetpack: str | None) -> MachineDescription:
    assert machine.jetson is not None
    return replace(machine, jetson=replace(machine.jetson, l4t=l4t, jetpack=jetpack))


def test_recorded_machines_have_the_conflicts_they_were_recorded_for() -> None:
    assert {name: names(recorded(name)) for name in NAMES} == {
        "agx_orin_with_tensorrt_11": [RTX, TENSORRT_11],
        "no_gpu": [],
        "orin_nano_jetpack_6_2_2": [RTX],
        "orin_nano_jetpack_7_2": [RTX, INT8],
        "rtx_4090": [],
        "thor_jetpack_7_1": [RTX],
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_conflict_is_one_line_and_has_a_source(name: str) -> None:
    for conflict in known_conflicts(recorded(name)):
        assert str(conflict) == f"{conflict.name}: {conflict.advice}"
        assert str(conflict).isprintable()
        assert conflict.source.startswith("https://")


def test_the_int8_conflict_is_one_of_int8_builds_alone() -> None:
    conflict = the(INT8, recorded("orin_nano_jetpack_7_2"))
    assert conflict.stops("tensorrt", "int8")
    assert not conflict.stops("tensorrt", "fp16")
    assert not conflict.stops("tensorrt")
    assert not conflict.stops("cpu", "int8")


def test_the_int8_conflict_needs_both_the_gpu_and_the_version() -> None:
    orin, thor = recorded("orin_nano_jetpack_7_2"), recorded("thor_jetpack_7_1")
    later = replace(with_packages(orin, tensorrt="10.16.3"), tensorrt_library="10.16.3.1")
    assert INT8 not in names(later)
    assert INT8 not in names(replace(thor, tensorrt_library="10.16.2.10", packages={}))


@pytest.mark.parametrize(
    ("tensorrt", "l4t", "jetpack"),
    [
        ("11.4.1.36", "36.5.0", "6.2.2"),
        ("11.4.1.36", "39.2.1", "7.2.1"),
        ("11.0.0", "36.4.4", None),
        ("11.3.0", "39.3.0", None),
    ],
)
def test_tensorrt_11_is_found_where_jetpack_does_not_support_it(tensorrt: str, l4t: str, jetpack: str | None) -> None:
    machine = with_jetson_linux(recorded("agx_orin_with_tensorrt_11"), l4t, jetpack)
    assert TENSORRT_11 in names(with_packages(machine, tensorrt=tensorrt))


@pytest.mark.parametrize(
    ("tensorrt", "l4t"), [("11.4.1.36", "39.3.0"), ("11.5.0", "40.0.0"), ("10.3.0", "36.5.0"), ("11.4.1.36", None)]
)
def test_tensorrt_11_is_no_conflict_where_it_is_supported_or_nothing_is_known(tensorrt: str, l4t: str | None) -> None:
    machine = with_jetson_linux(recorded("agx_orin_with_tensorrt_11"), l4t, None)
    assert TENSORRT_11 not in names(with_packages(machine, tensorrt=tensorrt))


@pytest.mark.parametrize(
    ("board", "supported"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", True),
        ("NVIDIA Jetson AGX Thor Developer Kit", True),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", False),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", False),
    ],
)
def test_tensorrt_11_supports_two_boards(board: str, supported: bool) -> None:
    machine = with_jetson_linux(recorded("agx_orin_with_tensorrt_11"), "39.3.0", None)
    assert machine.jetson is not None
    machine = replace(machine, jetson=replace(machine.jetson, board=board))
    assert (TENSORRT_11 not in names(machine)) == supported


def test_tensorrt_11_on_a_pc_is_no_conflict() -> None:
    assert names(with_packages(recorded("rtx_4090"), tensorrt="11.4.1.36")) == []


def test_tensorrt_11_on_a_board_whose_jetpack_is_unknown_names_the_jetson_linux() -> None:
    machine = with_jetson_linux(recorded("agx_orin_with_tensorrt_11"), "36.9.0", None)
    assert the(TENSORRT_11, machine).advice == (
        "TensorRT 11.4.1.36 does not support NVIDIA Jetson AGX Orin Developer Kit with L4T 36.9.0 (11.4.1 does JetPack "
        "7.2.2 on AGX Orin and Thor); use the one that came with JetPack: pip uninstall -y tensorrt tensorrt-cu13 "
        "tensorrt-cu13-bindings tensorrt-cu13-libs"
    )


def test_two_onnxruntimes_beside_each_other_are_found() -> None:
    machine = with_packages(recorded("no_gpu"), onnxruntime="1.31.1", onnxruntime_gpu="1.30.0")
    assert names(machine) == [ONNXRUNTIMES]
    assert the(ONNXRUNTIMES, machine).advice == (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 overwrite each other's module; "
        "run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'trol-export[cpu]', or 'trol-export[gpu]' "
        "for the backend cuda"
    )
    assert the(ONNXRUNTIMES, machine).stops("cpu")
    assert the(ONNXRUNTIMES, machine).stops("cuda")


@pytest.mark.parametrize("one", ["onnxruntime", "onnxruntime-gpu"])
def test_one_onnxruntime_is_no_conflict(one: str) -> None:
    assert onnxruntime_conflict({"onnxruntime": None, "onnxruntime-gpu": None, one: "1.31.1"}) is None
