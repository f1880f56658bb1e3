"""Which plan runs here: what a plan was built for makes its key, and is held against this machine before it is touched.

NVIDIA: TensorRT's plans run on the platform and version they were built for, and on that type of device alone; for all
GPUs of its compute capability there is HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY, which may cost speed and is
not used here (TensorRT 11.1, "Engine Compatibility"; 11.4.1, "Support Matrix"). TensorRT-RTX's run on that release
alone ("Engine Compatibility"), on all GPUs of the compute capabilities they were built for ("Support Matrix").
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trol_runtime.bundle import PLANS_FOLDER
from trol_runtime.errors import EngineFileError
from trol_runtime.jetson import jetpacks_with_tensorrt
from trol_runtime.machine import MachineDescription
from trol_runtime.manifest import Limits, Manifest, Opset, PlanEntry
from trol_runtime.one_line import one_line

_DIGEST_DIGITS = 8  # tells plans of one version, GPU and precision apart
# Characters of what the file says of its plans, and of the line in which the file's path stands twice.
_MOST_FOUND, _MOST_SAID = 240, 1000


@dataclass(frozen=True)
class BuiltFor:
    """Everything by which one plan differs from another of the same engine.

    version: of the library `target`; sm: compute capabilities such as ("8.7",); platform: as `this_platform`, None for
    any; graphs: as `graphs_sha256`; gpu: as `gpu_model`, None for all GPUs of these compute capabilities
    """

    target: str
    version: str
    sm: tuple[str, ...]
    platform: str | None
    limits: Limits
    precision: str
    weights: Literal["shared", "embedded"]
    mixer: Literal["plugin", "function"]
    graphs: str
    opset: Opset = "modern"
    gpu: str | None = None

    @property
    def key(self) -> str:
        """A name that people can read and that no other plan has."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode("ascii")).hexdigest()
        return f"{self.version}-sm{'-'.join(self.sm)}-{self.precision}-{digest[:_DIGEST_DIGITS]}"

    def plan(
        self,
        roles: Sequence[str],
        versions: Mapping[str, str],
        computes: Mapping[str, Mapping[str, str]] | None = None,
    ) -> PlanEntry:
        """The record of a plan for `roles`, not yet signed.

        versions: of what else took part, such as the driver; computes: as in PlanEntry
        """
        return PlanEntry(
            target=self.target,
            key=self.key,
            roles=tuple(roles),
            precision=self.precision,
            entries=tuple(f"{PLANS_FOLDER}{self.target}/{self.key}/{role}.plan" for role in roles),
            versions={**versions, self.target: self.version},
            sm=", ".join(self.sm),
            gpu=self.gpu,
            platform=self.platform,
            limits=self.limits,
            weights=self.weights,
            mixer=self.mixer,
            opset=self.opset,
            computes={role: dict(groups) for role, groups in (computes or {}).items()},
            graphs=self.graphs,
        )


@dataclass(frozen=True)
class Device:
    """What a machine runs plans with: the library `target` of this version, on a GPU of this compute capability.

    gpu: as `gpu_model`
    """

    target: str
    version: str
    sm: str
    platform: str
    gpu: str | None = None


def this_platform() -> str:
    """System and processor, such as "linux-aarch64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def gpu_model(target: str, machine: MachineDescription) -> str | None:
    """The model of GPU that a target's plans are bound to here: its name; on a Jetson the board's, as all Orins' GPUs
    are called "Orin".

    None where plans run on all GPUs of the compute capability, and where nothing tells.
    """
    if target != "tensorrt":
        return None
    if machine.jetson is not None:
        return machine.jetson.board
    return None if machine.gpu is None else machine.gpu.name


def graphs_sha256(manifest: Manifest) -> str:
    """SHA-256 over all graphs of an engine, from those of the graphs."""
    hashes = {role: manifest.sha256.entries.get(graph.entry) for role, graph in manifest.graphs.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode("ascii")).hexdigest()


def entry_of(plan: PlanEntry, role: str) -> str:
    """The entry that holds a role; raises EngineFileError for a plan that has none."""
    entries = dict(zip(plan.roles, plan.entries, strict=False))
    if role not in entries:
        raise EngineFileError(
            f"{plan.target} plan {plan.key} has no {role}, only {one_line(', '.join(entries))}; export the engine again"
        )
    return entries[role]


def fitting(plans: Sequence[PlanEntry], manifest: Manifest, device: Device) -> list[PlanEntry]:
    """Those of the plans that run on the device, with the graphs and limits of the engine; the last added first.

    A plan whose record names no GPU goes by its compute capability: those for RTX run on all of one.
    """
    graphs = graphs_sha256(manifest)
    return [
        plan
        for plan in reversed(plans)
        if (plan.target, plan.versions.get(plan.target)) == (device.target, device.version)
        and device.sm in (plan.sm or "").split(", ")
        and plan.gpu in (None, device.gpu)
        and plan.platform in (None, device.platform)
        and (plan.limits, plan.graphs) == (manifest.limits, graphs)
    ]


def none_fits(path: Path, manifest: Manifest, device: Device) -> str:
    """One line for when no plan in the file fits: found, needed, the command that adds one."""
    graphs = graphs_sha256(manifest)
    found = [
        _described(plan) + (", built from other graphs" if plan.graphs not in (None, graphs) else "")
        for plan in manifest.plans
    ]
    needed = (
        f"{_built_by(device.target, device.version, device.sm)} {_gpus(device.sm, device.gpu)} on {device.platform}, "
        f"{manifest.limits.max_seq:,} tokens, {manifest.limits.max_batch} rows"
    )
    shown = one_line(" and ".join(dict.fromkeys(found)) or "none", _MOST_FOUND)
    return one_line(
        f"{path}: no plan for this machine: found {shown}; needed {needed}; "
        f"add one with: trol-export --add-target {device.target} {path}",
        _MOST_SAID,
    )


def _described(plan: PlanEntry) -> str:
    parts = [_built_by(plan.target, plan.versions.get(plan.target), plan.sm)]
    parts += [_gpus(plan.sm, plan.gpu)] if plan.sm else []
    parts += [f"on {plan.platform}"] if plan.platform else []
    limits = f", {plan.limits.max_seq:,} tokens, {plan.limits.max_batch} rows" if plan.limits else ""
    return " ".join(parts) + limits


def _built_by(target: str, version: str | None, sm: str | None) -> str:
    """The library; of TensorRT on a Jetson also the JetPacks that bring it, where they are known."""
    if version is None:
        return target
    jetpacks = jetpacks_with_tensorrt(version, sm) if target == "tensorrt" else None
    return f"{target} {version}" + (f" (JetPack {jetpacks})" if jetpacks else "")


def _gpus(sm: str, gpu: str | None) -> str:
    return f"for SM {sm}" + (f" ({gpu})" if gpu else "")
