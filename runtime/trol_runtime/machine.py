"""What a machine is, as plain data: all that decides which targets it builds and runs.

Tests take descriptions from files: one recorded, the others put together from what is published about the machine.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.debian_packages import debian_packages
from trol_runtime.installed_packages import cuda_majors, installed_packages
from trol_runtime.jetson import Jetson, read_jetson
from trol_runtime.nvidia_driver import Gpu, NvidiaDriver, read_nvidia_driver
from trol_runtime.system_files import ROOT, text_of
from trol_runtime.system_memory import memory_available_bytes, memory_total_bytes
from trol_runtime.tensorrt_library import tensorrt_library_version
from trol_runtime.version_numbers import same_version


@dataclass(frozen=True)
class MachineDescription:
    """A machine as one process sees it; None where nothing tells.

    cores: those the process may be scheduled on
    memory_total, memory_available: bytes, within the container's limit
    system, architecture: such as "Linux 6.8.0-79-generic x86_64" and "x86_64"
    nvidia: None without an NVIDIA driver; on a Jetson, the chip's GPU is there even if the driver says nothing of it
    jetson: None on anything but a Jetson
    tensorrt_library: version of the system's library, whether or not Python can import its package
    tensorrt_python: version of the system's Debian package with which its Python could
    packages: installed version by distribution name, None for one that is missing
    cuda_majors: of packages that tell, the major version of CUDA that they are built for
    """

    cpu: str
    cores: int
    memory_total: int | None
    memory_available: int | None
    system: str
    architecture: str
    python: str
    nvidia: NvidiaDriver | None
    jetson: Jetson | None
    tensorrt_library: str | None
    tensorrt_python: str | None
    packages: dict[str, str | None]
    cuda_majors: dict[str, int]

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that engines use."""
        return self.nvidia.gpus[0] if self.nvidia is not None and self.nvidia.gpus else None

    @property
    def sm(self) -> str | None:
        """That GPU's compute capability."""
        return None if self.gpu is None else self.gpu.sm

    @property
    def tensorrt(self) -> str | None:
        """The TensorRT that Python imports, else the system's; where both are the same, the system's longer version."""
        package, library = self.packages.get("tensorrt"), self.tensorrt_library
        if package is None or (library is not None and same_version(package, library)):
            return library
        return package

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MachineDescription:
        """Read `to_json`'s result; raises EngineFileError naming the key that is missing or wrong."""
        return dataclass_from_json(cls, values)


def describe_machine(root: Path = ROOT) -> MachineDescription:
    """Look at this machine; what cannot be read is None, nothing raises."""
    debian = debian_packages(root)
    jetson = read_jetson(debian, root)
    return MachineDescription(
        cpu=_cpu_model(root),
        cores=_usable_cores(),
        memory_total=memory_total_bytes(root),
        memory_available=memory_available_bytes(root),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        architecture=platform.machine(),
        python=platform.python_version(),
        nvidia=_with_gpu_of(jetson, read_nvidia_driver(root)),
        jetson=jetson,
        tensorrt_library=tensorrt_library_version(debian, root),
        tensorrt_python=debian.get("python3-libnvinfer"),
        packages=installed_packages(),
        cuda_majors=cuda_majors(),
    )


def _with_gpu_of(jetson: Jetson | None, driver: NvidiaDriver | None) -> NvidiaDriver | None:
    """The driver, with the GPU on a Jetson's chip where it does not say which SM that has."""
    told = driver is not None and driver.gpus and driver.gpus[0].sm is not None
    if told or jetson is None or jetson.gpu is None:
        return driver
    name, sm = jetson.gpu
    return replace(driver or NvidiaDriver(None, None, ()), gpus=(Gpu(name, sm, None),))


def _cpu_model(root: Path) -> str:
    named = re.search(r"^model name\s*: *(.+)$", text_of(root / "proc/cpuinfo"), re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
