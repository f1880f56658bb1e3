"""What the driver says: by CUDA's interface, by nvidia-smi, by the kernel's file; and that nothing of it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from system_tree import write_tree
from trol_runtime import nvidia_driver as module
from trol_runtime.nvidia_driver import (
    Gpu,
    NvidiaDriver,
    driver_of_nvidia_smi,
    read_nvidia_driver,
    version_of_kernel_module,
)

GIB = 2**30
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24564 * 2**20)
KERNEL_FILE = "proc/driver/nvidia/version"

# As reported in github.com/nix-community/nixGL issues 121 and 139, and the closed module's.
OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  525.60.11  Release Build  (builder@localhost)  \n"
    "GCC version:  gcc version 12.2.0 (GCC) \n"
)
CLOSED_MODULE = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"
)
ORIN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  35.3.1  Release Build  "
    "(buildbrain@mobile-u64-6289-d7000)  Sun Mar 19 08:09:33 PDT 2023\n"
    "GCC version:  gcc version 9.3.0 (Buildroot 2020.08) \n"
)
TABLE = """\
Wed Jan 24 15:18:40 2024
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.40.07              Driver Version: 550.40.07      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
"""
# github.com/anduril/jetpack-nixos, pull request 371
ORIN_TABLE = """\
Thu Oct  9 01:42:44 2025
+---------------------------------------------------------------------------------------+
| NVIDIA-SMI 540.4.0                Driver Version: 540.4.0      CUDA Version: N/A      |
|-----------------------------------------+----------------------+----------------------+
"""


def fake_cuda(gpus: list[Gpu], cu_init: int = 0) -> Any:
    """The calls of cuda.bindings.driver that the report makes, on these GPUs."""
    attributes = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )
    return SimpleNamespace(
        CUdevice_attribute=attributes,
        cuInit=lambda flags: (cu_init,),
        cuDriverGetVersion=lambda: (0, 13020),
        cuDeviceGetCount=lambda: (0, len(gpus)),
        cuDeviceGet=lambda ordinal: (0, ordinal),
        cuDeviceGetAttribute=lambda attribute, device: (0, int((gpus[device].sm or "").split(".")[attribute])),
        cuDeviceGetName=lambda length, device: (0, gpus[device].name.encode().ljust(length, b"\0")),
        cuDeviceTotalMem=lambda device: (0, gpus[device].memory),
    )


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda.bindings is not installed."""
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a fake of cuda.bindings.driver."""

    def install(driver: Any) -> None:
        bindings = ModuleType("cuda.bindings")
        bindings.driver = driver  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)

    return install


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What nvidia-smi prints: its table, and the answer to the query; nothing until a test fills it in."""
    printed = ["", ""]
    monkeypatch.setattr(module, "_printed_by", lambda *command: printed[len(command) > 1])
    return printed


@pytest.mark.parametrize(
    ("text", "version"),
    [(OPEN_MODULE, "525.60.11"), (CLOSED_MODULE, "535.129.03"), (ORIN_MODULE, "35.3.1"), ("", None), ("NVRM\n", None)],
)
def test_the_kernel_module_tells_its_version(text: str, version: str | None) -> None:
    assert version_of_kernel_module(text) == version


def test_nvidia_smi_tells_version_cuda_and_gpus() -> None:
    gpus = "NVIDIA GeForce RTX 4090, 8.9, 24564\nNVIDIA RTX A2000, 8.6, 6138\n"
    assert driver_of_nvidia_smi(TABLE, gpus) == NvidiaDriver(
        "550.40.07", "12.4", (RTX_4090, Gpu("NVIDIA RTX A2000", "8.6", 6138 * 2**20))
    )


def test_on_orin_nvidia_smi_tells_little_more_than_a_name() -> None:
    assert driver_of_nvidia_smi(ORIN_TABLE, "Orin (nvgpu), [N/A], [N/A]\n") == NvidiaDriver(
        "540.4.0", None, (Gpu("Orin (nvgpu)", None, None),)
    )


@pytest.mark.parametrize(
    "gpus", ["", "No devices were found\n", 'Field "compute_cap" is not a valid field to query.\n']
)
def test_what_nvidia_smi_says_in_the_place_of_gpus_is_none(gpus: str) -> None:
    assert driver_of_nvidia_smi(TABLE, gpus) == NvidiaDriver("550.40.07", "12.4", ())


def test_nothing_printed_is_no_driver() -> None:
    assert driver_of_nvidia_smi("", "") is None


def test_cuda_is_asked_first(with_cuda: Any, nvidia_smi: list[str], tmp_path: Path) -> None:
    nvidia_smi[:] = TABLE, "NVIDIA GeForce GTX 1080, 6.1, 8192\n"
    with_cuda(fake_cuda([RTX_4090]))
    root = write_tree(tmp_path, {KERNEL_FILE: OPEN_MODULE})
    assert read_nvidia_driver(root) == NvidiaDriver("525.60.11", "13.2", (RTX_4090,))


def test_gpus_are_in_the_order_of_cuda(with_cuda: Any, tmp_path: Path) -> None:
    gpus = [Gpu("first", "8.9", GIB), Gpu("second", "12.0", 2 * GIB)]
    with_cuda(fake_cuda(gpus))
    driver = read_nvidia_driver(tmp_path)
    assert driver is not None
    assert driver.gpus == tuple(gpus)


def test_where_cuda_cannot_start_nvidia_smi_is_asked(with_cuda: Any, nvidia_smi: list[str], tmp_path: Path) -> None:
    nvidia_smi[:] = TABLE, "NVIDIA GeForce RTX 4090, 8.9, 24564\n"
    with_cuda(fake_cuda([RTX_4090], cu_init=999))
    assert read_nvidia_driver(tmp_path) == NvidiaDriver("550.40.07", "12.4", (RTX_4090,))


@pytest.mark.usefixtures("without_cuda")
def test_without_cuda_bindings_nvidia_smi_is_asked(nvidia_smi: list[str], tmp_path: Path) -> None:
    nvidia_smi[:] = TABLE, "NVIDIA GeForce RTX 4090, 8.9, 24564\n"
    assert read_nvidia_driver(tmp_path) == NvidiaDriver("550.40.07", "12.4", (RTX_4090,))


@pytest.mark.usefixtures("without_cuda", "nvidia_smi")
def test_a_driver_that_only_the_kernel_knows_has_no_gpus(tmp_path: Path) -> None:
    assert read_nvidia_driver(write_tree(tmp_path, {KERNEL_FILE: CLOSED_MODULE})) == NvidiaDriver(
        "535.129.03", None, ()
    )


@pytest.mark.usefixtures("without_cuda", "nvidia_smi")
def test_a_machine_without_any_of_it_has_no_driver(tmp_path: Path) -> None:
    assert read_nvidia_driver(tmp_path) is None


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError("nvidia-smi"),
        PermissionError("nvidia-smi"),
        OSError(8, "Exec format error"),
        subprocess.TimeoutExpired("nvidia-smi", 20),
    ],
)
def test_an_nvidia_smi_that_cannot_run_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: Exception
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    assert read_nvidia_driver(tmp_path) is None


@pytest.mark.usefixtures("without_cuda")
def test_what_a_failing_nvidia_smi_prints_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = subprocess.CompletedProcess("nvidia-smi", 9, stdout=TABLE)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    assert read_nvidia_driver(tmp_path) is None


def test_the_installed_cuda_bindings_have_every_call_that_is_made() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda.bindings is not installed")
    fake = fake_cuda([])
    assert set(vars(fake)) <= set(dir(driver))
    assert set(vars(fake.CUdevice_attribute)) <= set(dir(driver.CUdevice_attribute))
    assert driver.CUresult.CUDA_SUCCESS == 0
    assert driver.CUresult.CUDA_ERROR_NO_DEVICE != 0
