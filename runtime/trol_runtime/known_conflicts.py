"""Combinations of machine and software that are known not to work, each with the place where that is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trol_runtime.installed_packages import tensorrt_distributions
from trol_runtime.machine import MachineDescription
from trol_runtime.version_numbers import same_version, version_numbers

_BOARDS_OF_TENSORRT_11 = ("AGX Orin", "Thor")


@dataclass(frozen=True)
class Conflict:
    """A bad combination found on a machine.

    name: the combination in a few words
    targets: what it keeps from being built and run
    precisions: only in these, at a build; () for all, and for running too
    advice: why not, and what to do, in one line
    source: where it is documented or reported
    """

    name: str
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    advice: str
    source: str

    def stops(self, target: str, precision: str | None = None) -> bool:
        """Whether it stands in the way of a target, in a precision that is built or None for running."""
        return target in self.targets and (not self.precisions or precision in self.precisions)

    def __str__(self) -> str:
        return f"{self.name}: {self.advice}"


def known_conflicts(machine: MachineDescription) -> tuple[Conflict, ...]:
    """Those that this machine has."""
    found = (look(machine) for look in _LOOKS)
    return tuple(conflict for conflict in found if conflict is not None)


def onnxruntime_conflict(packages: Mapping[str, str | None]) -> str | None:
    """What to do when onnxruntime and onnxruntime-gpu are both installed: they overwrite each other's module."""
    if packages.get("onnxruntime") is None or packages.get("onnxruntime-gpu") is None:
        return None
    return (
        f"onnxruntime {packages['onnxruntime']} and onnxruntime-gpu {packages['onnxruntime-gpu']} overwrite "
        "each other's module; run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'trol-export[cpu]', or "
        "'trol-export[gpu]' for the backend cuda"
    )


def _two_onnxruntimes(machine: MachineDescription) -> Conflict | None:
    advice = onnxruntime_conflict(machine.packages)
    if advice is None:
        return None
    return Conflict(
        name="onnxruntime beside onnxruntime-gpu",
        targets=("cpu", "cuda"),
        precisions=(),
        advice=advice,
        source="https://github.com/microsoft/onnxruntime/issues/10685",
    )


def _rtx_on_jetson(machine: MachineDescription) -> Conflict | None:
    """TensorRT-RTX 1.7's ComputeCapability has no 8.7 and no 11.0; of Arm systems, its release notes name DGX Spark."""
    if machine.jetson is None:
        return None
    return Conflict(
        name="TensorRT-RTX on Jetson",
        targets=("tensorrt-rtx",),
        precisions=(),
        advice="its GPU is not supported; take the target tensorrt",
        source="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/release-notes-1/1.6.html",
    )


def _tensorrt_11_on_jetpack(machine: MachineDescription) -> Conflict | None:
    """11.4.1 is the first TensorRT 11 that supports JetPack: from 7.2.2 on, which is later than L4T 39.2.1, and on two
    boards."""
    if machine.jetson is None or machine.jetson.l4t is None or machine.tensorrt is None:
        return None
    version, linux = version_numbers(machine.tensorrt), version_numbers(machine.jetson.l4t)
    supported = any(board in machine.jetson.board for board in _BOARDS_OF_TENSORRT_11)
    if version < (11,) or (version >= (11, 4, 1) and linux > (39, 2, 1) and supported):
        return None
    installed = tensorrt_distributions("tensorrt", machine.cuda_majors.get("tensorrt"))
    return Conflict(
        name="TensorRT 11 on JetPack",
        targets=("tensorrt",),
        precisions=(),
        advice=f"TensorRT {machine.tensorrt} does not support {machine.jetson.board} with {machine.jetson.software} "
        "(11.4.1 does JetPack 7.2.2 on AGX Orin and Thor); use the one that came with JetPack: "
        f"pip uninstall -y {' '.join(installed)}",
        source="https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
    )


def _int8_on_orin(machine: MachineDescription) -> Conflict | None:
    """An INT8 model with Q/DQ nodes that 10.16.2.10 builds for SM 11.0 fails on SM 8.7 at a `dequantize`."""
    if machine.sm != "8.7" or machine.tensorrt is None or not same_version(machine.tensorrt, "10.16.2.10"):
        return None
    return Conflict(
        name="INT8 Q/DQ on SM 8.7 with TensorRT 10.16.2.10",
        targets=("tensorrt",),
        precisions=("int8",),
        advice='builds end in "Could not infer output types for operation: dequantize"; build --precision fp16',
        source="https://github.com/NVIDIA/TensorRT/issues/4832",
    )


_LOOKS: tuple[Callable[[MachineDescription], Conflict | None], ...] = (
    _two_onnxruntimes,
    _rtx_on_jetson,
    _tensorrt_11_on_jetpack,
    _int8_on_orin,
)
