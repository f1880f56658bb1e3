"""The description of a machine: read off a system's files, written as JSON and read back."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from recorded_machines import NAMES, recorded, recorded_json
from system_tree import write_tree
from trol_runtime import machine as module
from trol_runtime.errors import EngineFileError
from trol_runtime.installed_packages import PACKAGES
from trol_runtime.machine import MachineDescription, describe_machine
from trol_runtime.nvidia_driver import Gpu, NvidiaDriver

ORIN_NANO = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 5.0, GCID: 1, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS\t: 62.50\n",
    "proc/meminfo": "MemTotal:        7802128 kB\nMemAvailable:    6291456 kB\n",
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[NvidiaDriver | None]:
    """What the NVIDIA driver says, in place of the real one: at first, that there is none."""
    says: list[NvidiaDriver | None] = [None]
    monkeypatch.setattr(module, "read_nvidia_driver", lambda root: says[0])
    return says


def test_this_machine_can_be_described() -> None:
    machine = describe_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.python == platform.python_version()
    assert machine.architecture == platform.machine()
    assert list(machine.packages) == list(PACKAGES)
    assert machine.packages["numpy"]


@pytest.mark.usefixtures("driver")
def test_a_system_without_any_of_the_files_is_described_by_what_is_left(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert machine.cpu == (platform.processor() or platform.machine())
    assert (machine.memory_total, machine.memory_available) == (None, None)
    assert (machine.nvidia, machine.jetson, machine.tensorrt_library) == (None, None, None)
    assert (machine.gpu, machine.sm) == (None, None)


@pytest.mark.usefixtures("driver")
def test_files_full_of_something_else_do_not_raise(tmp_path: Path) -> None:
    root = write_tree(tmp_path, dict.fromkeys([*ORIN_NANO, "var/lib/dpkg/status", "proc/self/cgroup"], "\0?\n: %\n"))
    machine = describe_machine(root)
    assert (machine.memory_total, machine.jetson) == (None, None)


def test_a_jetson_is_read_off_its_files(tmp_path: Path, driver: list[NvidiaDriver | None]) -> None:
    driver[0] = NvidiaDriver("540.5.0", "12.6", (Gpu("Orin", "8.7", 2**33),))
    machine = describe_machine(write_tree(tmp_path, ORIN_NANO))
    assert machine.cpu == "ARMv8 Processor rev 1 (v8l)"
    assert machine.memory_total == 7802128 * 1024
    assert machine.nvidia == driver[0]
    assert machine.jetson is not None
    assert machine.jetson.software == "JetPack 6.2.2 (L4T 36.5.0)"
    assert (machine.tensorrt_library, machine.tensorrt_python) == ("10.3.0", None)


@pytest.mark.usefixtures("driver")
def test_the_systems_python_package_of_tensorrt_is_read_off_dpkg(tmp_path: Path) -> None:
    record = "Package: python3-libnvinfer\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n"
    machine = describe_machine(write_tree(tmp_path, {**ORIN_NANO, "var/lib/dpkg/status": record}))
    assert machine.tensorrt_python == "10.3.0.30-1+cuda12.5"


@pytest.mark.parametrize(
    "says",
    [None, NvidiaDriver("540.5.0", None, ()), NvidiaDriver("540.5.0", None, (Gpu("Orin (nvgpu)", None, None),))],
)
def test_a_jetson_whose_driver_tells_no_sm_has_the_gpu_of_its_chip(
    tmp_path: Path, driver: list[NvidiaDriver | None], says: NvidiaDriver | None
) -> None:
    driver[0] = says
    machine = describe_machine(write_tree(tmp_path, ORIN_NANO))
    assert machine.gpu == Gpu("Orin", "8.7", None)
    assert machine.nvidia is not None
    assert machine.nvidia.version == (says and says.version)


@pytest.mark.parametrize("name", NAMES)
def test_a_description_is_the_same_after_a_way_through_json(name: str) -> None:
    machine = recorded(name)
    assert MachineDescription.from_json(json.loads(json.dumps(machine.to_json()))) == machine


def test_keys_that_a_later_version_adds_are_passed_over() -> None:
    assert "source" in recorded_json("no_gpu")
    assert "source" not in recorded("no_gpu").to_json()


def test_a_wrong_key_is_named() -> None:
    with pytest.raises(EngineFileError, match="key 'cores' must be an integer, found 'two'"):
        MachineDescription.from_json({**recorded_json("no_gpu"), "cores": "two"})


def test_of_two_tensorrts_the_one_that_python_imports_counts() -> None:
    machine = recorded("agx_orin_with_tensorrt_11")
    assert (machine.packages["tensorrt"], machine.tensorrt_library) == ("11.4.1.36", "10.3.0.30")
    assert machine.tensorrt == "11.4.1.36"


def test_of_two_names_of_the_same_tensorrt_the_longer_is_shown() -> None:
    machine = recorded("orin_nano_jetpack_7_2")
    assert (machine.packages["tensorrt"], machine.tensorrt_library) == ("10.16.2", "10.16.2.10")
    assert machine.tensorrt == "10.16.2.10"
