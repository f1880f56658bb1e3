"""What this machine is and which engines run on it: CPU, memory, versions. Needs no engine file and no backend."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("trol-export", "numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu")

# The oldest Python for which onnxruntime has wheels.
ONNXRUNTIME_PYTHON = (3, 11)


@dataclass(frozen=True)
class SystemReport:
    """The machine as this process sees it: memory in bytes within the container's limit, None where unknown.

    packages: installed version by distribution name, None for one that is missing.
    runs: per target, "yes" or what to do.
    """

    cpu: str
    cores: int
    memory_total: int | None
    memory_available: int | None
    system: str
    python: str
    packages: dict[str, str | None]
    runs: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def system_report() -> SystemReport:
    """Look at this machine."""
    packages = {name: installed_version(name) for name in PACKAGES}
    return SystemReport(
        cpu=_cpu_model(),
        cores=_usable_cores(),
        memory_total=memory_total_bytes(),
        memory_available=memory_available_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=packages,
        runs={"cpu": _cpu_engines(packages)},
    )


def onnxruntime_conflict(packages: dict[str, str | None]) -> str | None:
    """What to do when onnxruntime and onnxruntime-gpu are both installed: they overwrite each other's module."""
    if packages["onnxruntime"] is None or packages["onnxruntime-gpu"] is None:
        return None
    return (
        f"onnxruntime {packages['onnxruntime']} and onnxruntime-gpu {packages['onnxruntime-gpu']} overwrite "
        "each other's module; run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'trol-export[cpu]'"
    )


def memory_total_bytes() -> int | None:
    """Memory this process may use at most: the machine's, or the container's limit if that is lower."""
    return min(_known(_meminfo("MemTotal"), *(limit for limit, _ in _cgroup_memory())), default=None)


def memory_available_bytes() -> int | None:
    """Memory this process can still take without swapping, page cache that can be dropped included."""
    room = [limit - used for limit, used in _cgroup_memory()]
    return min(_known(_meminfo("MemAvailable"), *room), default=None)


def _cpu_engines(packages: dict[str, str | None]) -> str:
    conflict = onnxruntime_conflict(packages)
    if conflict is not None:
        return conflict
    if packages["onnxruntime"] is not None or packages["onnxruntime-gpu"] is not None:
        return "yes"
    if sys.version_info < ONNXRUNTIME_PYTHON:
        return f"onnxruntime needs Python 3.11 or newer, this is {platform.python_version()}"
    return "onnxruntime is missing; run: pip install 'trol-export[cpu]'"


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _meminfo(key: str) -> int | None:
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def _cgroup_memory() -> list[tuple[int, int]]:
    """(limit, used) in bytes of every memory-limited control group (version 2) around this process; inner ones first.

    Used does not count inactive file pages, which the kernel drops when the group needs room.
    """
    found = []
    own = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
    group = None if own is None else Path("/sys/fs/cgroup") / own.strip("/")
    while group is not None and group != Path("/sys/fs"):
        limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
        if limit and used and limit[0] != "max":
            statistics = dict(line.split() for line in _lines(group / "memory.stat"))
            found.append((int(limit[0]), int(used[0]) - int(statistics.get("inactive_file", 0))))
        group = group.parent
    return found


def _lines(path: str | Path) -> list[str]:
    """The lines of a system file, none where the system has no such file."""
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _known(*values: int | None) -> list[int]:
    return [value for value in values if value is not None]
