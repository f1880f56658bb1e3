"""The system report: what this machine is, and what to do when it cannot run an engine."""

from __future__ import annotations

import json
import platform

import pytest

from trol_runtime import system_report as module
from trol_runtime.system_report import (
    PACKAGES,
    memory_available_bytes,
    memory_total_bytes,
    onnxruntime_conflict,
    system_report,
)

GIB = 2**30


@pytest.fixture
def system_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Contents of system files by path, in place of the real ones."""
    files: dict[str, str] = {}
    monkeypatch.setattr(module, "_lines", lambda path: files.get(str(path), "").splitlines())
    return files


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Installed versions by distribution, in place of the real ones."""
    versions: dict[str, str] = {}
    monkeypatch.setattr(module, "installed_version", versions.get)
    return versions


def test_this_machine_can_be_described() -> None:
    report = system_report()
    assert report.cpu
    assert report.cores >= 1
    assert report.python == platform.python_version()
    assert list(report.packages) == list(PACKAGES)
    assert report.packages["numpy"]
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


def test_available_memory_is_part_of_the_total() -> None:
    total, available = memory_total_bytes(), memory_available_bytes()
    if total is None or available is None:
        pytest.skip("this system does not say how much memory it has")
    assert 0 < available <= total


def test_memory_is_read_from_meminfo(system_files: dict[str, str]) -> None:
    system_files["/proc/meminfo"] = "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:    4194304 kB\n"
    assert (memory_total_bytes(), memory_available_bytes()) == (8 * GIB, 4 * GIB)


@pytest.mark.usefixtures("system_files")
def test_memory_is_unknown_where_the_system_does_not_say() -> None:
    assert (memory_total_bytes(), memory_available_bytes()) == (None, None)


def test_a_container_limit_below_the_machine_counts_and_droppable_pages_do_not(system_files: dict[str, str]) -> None:
    system_files |= {
        "/proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {60 * GIB // 1024} kB\n",
        "/proc/self/cgroup": "0::/service/engine\n",
        "/sys/fs/cgroup/service/engine/memory.max": "max\n",
        "/sys/fs/cgroup/service/engine/memory.current": f"{GIB}\n",
        "/sys/fs/cgroup/service/memory.max": f"{8 * GIB}\n",
        "/sys/fs/cgroup/service/memory.current": f"{5 * GIB}\n",
        "/sys/fs/cgroup/service/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
    }
    assert (memory_total_bytes(), memory_available_bytes()) == (8 * GIB, 5 * GIB)


def test_the_cpu_is_named_by_the_kernel_or_else_by_its_architecture(system_files: dict[str, str]) -> None:
    assert system_report().cpu == (platform.processor() or platform.machine())
    system_files["/proc/cpuinfo"] = "processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: other\n"
    assert system_report().cpu == "Fast CPU @ 3 GHz"


def test_a_missing_package_is_reported_as_none(installed: dict[str, str]) -> None:
    installed["numpy"] = "2.0"
    assert system_report().packages == {**dict.fromkeys(PACKAGES), "numpy": "2.0"}


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu"])
def test_either_onnxruntime_runs_cpu_engines(installed: dict[str, str], package: str) -> None:
    installed[package] = "1.31.1"
    assert system_report().runs == {"cpu": "yes"}


@pytest.mark.usefixtures("installed")
def test_without_onnxruntime_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "version_info", (3, 11, 7))
    assert system_report().runs["cpu"] == "onnxruntime is missing; run: pip install 'trol-export[cpu]'"


@pytest.mark.usefixtures("installed")
def test_on_python_3_10_there_is_no_onnxruntime_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "version_info", (3, 10, 12))
    assert system_report().runs["cpu"].startswith("onnxruntime needs Python 3.11 or newer, this is ")


def test_two_onnxruntimes_beside_each_other_are_detected(installed: dict[str, str]) -> None:
    installed |= {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}
    message = (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 overwrite each other's module; "
        "run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'trol-export[cpu]'"
    )
    assert system_report().runs["cpu"] == message
    assert onnxruntime_conflict(system_report().packages) == message
