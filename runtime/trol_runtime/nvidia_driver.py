"""What the NVIDIA driver says: its version, the newest CUDA it runs, and its GPUs. Never raises."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trol_runtime.system_files import ROOT, text_of

_SECONDS = 20  # nvidia-smi wakes up sleeping GPUs
_GPU_FIELDS = "name,compute_cap,memory.total"


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    sm: compute capability such as "8.9"
    memory: bytes, on a Jetson of the memory it shares with the CPU
    Both are None where the driver does not say.
    """

    name: str
    sm: str | None
    memory: int | None


@dataclass(frozen=True)
class NvidiaDriver:
    """The driver; None for what it does not say.

    cuda: the newest CUDA version it runs, such as "13.0"
    gpus: in CUDA's order: the first is the one that engines use
    """

    version: str | None
    cuda: str | None
    gpus: tuple[Gpu, ...]


def read_nvidia_driver(root: Path = ROOT) -> NvidiaDriver | None:
    """Ask CUDA where cuda.bindings is installed, else nvidia-smi; None on a machine without an NVIDIA driver."""
    version = version_of_kernel_module(text_of(root / "proc/driver/nvidia/version"))
    driver = _ask_cuda() or _ask_nvidia_smi()
    if driver is None:
        return None if version is None else NvidiaDriver(version, None, ())
    return replace(driver, version=version or driver.version)


def version_of_kernel_module(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version, whose wording differs between the open and the closed module."""
    match = re.search(r"^NVRM version: .*? Kernel Module .*?([0-9]+(?:\.[0-9]+)+) ", text, re.MULTILINE)
    return match[1] if match else None


def driver_of_nvidia_smi(table: str, gpus: str) -> NvidiaDriver | None:
    """What `nvidia-smi` printed, None if nothing: its table, and the answer to a query of _GPU_FIELDS as CSV.

    A field that a GPU does not have reads [N/A]; on Orin this is every one but the name.
    """
    rows = [re.split(r", *", line.strip()) for line in gpus.splitlines()]
    found = tuple(
        Gpu(
            name=name,
            sm=sm if re.fullmatch(r"[0-9]+\.[0-9]+", sm) else None,
            memory=int(mebibytes) * 2**20 if mebibytes.isdecimal() else None,
        )
        for name, sm, mebibytes in (row for row in rows if len(row) == 3)
    )
    version = re.search(r"Driver Version: +([0-9.]+)", table)
    cuda = re.search(r"CUDA Version: +([0-9.]+)", table)
    if not found and version is None:
        return None
    return NvidiaDriver(version[1] if version else None, cuda[1] if cuda else None, found)


def _ask_nvidia_smi() -> NvidiaDriver | None:
    return driver_of_nvidia_smi(
        _printed_by("nvidia-smi"),
        _printed_by("nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"),
    )


def _printed_by(*command: str) -> str:
    """What a command printed, "" where it is missing or failed."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if process.returncode else process.stdout


def _ask_cuda() -> NvidiaDriver | None:
    """The driver by its own interface, None without cuda.bindings, without a driver, or without a GPU.

    The module raises RuntimeError where it finds no driver to call.
    """
    try:
        from cuda.bindings import driver as cuda

        _value(cuda.cuInit(0))
        version = _value(cuda.cuDriverGetVersion())
        gpus = tuple(_gpu(cuda, ordinal) for ordinal in range(_value(cuda.cuDeviceGetCount())))
    except (ImportError, RuntimeError):
        return None
    return NvidiaDriver(None, f"{version // 1000}.{version % 1000 // 10}", gpus)


def _gpu(cuda: Any, ordinal: int) -> Gpu:
    device = _value(cuda.cuDeviceGet(ordinal))
    kind = cuda.CUdevice_attribute
    major, minor = (
        _value(cuda.cuDeviceGetAttribute(attribute, device))
        for attribute in (
            kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    name = _value(cuda.cuDeviceGetName(256, device)).split(b"\0")[0].decode("utf-8", "replace")
    return Gpu(name, f"{major}.{minor}", _value(cuda.cuDeviceTotalMem(device)))


def _value(answer: tuple[Any, ...]) -> Any:
    """The value in an answer of cuda.bindings, (status, value) or (status,); raises RuntimeError for a bad status."""
    status, *values = answer
    if status != 0:
        raise RuntimeError(f"CUDA: {status!r}")
    return values[0] if values else None
