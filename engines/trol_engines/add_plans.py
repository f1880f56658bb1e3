"""Adds the plans of a target to an engine file: built from the graphs in it, and put behind its end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from trol_engines.mixer_plugin import register_mixer
from trol_engines.plan_builder import BuiltPlan
from trol_engines.plan_set import MixerForm, WeightForm, build_plans
from trol_engines.tensorrt_package import TensorRTPackage, import_tensorrt
from trol_runtime.bundle import Bundle
from trol_runtime.errors import TrolError
from trol_runtime.machine import MachineDescription, describe_machine
from trol_runtime.manifest import PlanEntry
from trol_runtime.plan_choice import BuiltFor, graphs_sha256, this_platform
from trol_runtime.plan_store import add_plan
from trol_runtime.target_support import require_buildable
from trol_runtime.version_numbers import version_numbers

# A plan built without further configuration runs on these (TensorRT-RTX, "CPU-Only AOT and TensorRT-RTX Engines").
_RTX_SMS = ("8.0", "8.6", "8.9", "12.0")

_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}


def add_plans(
    path: Path, target: str, weights: WeightForm, step: Callable[[str], AbstractContextManager[None]]
) -> PlanEntry:
    """Build the plans of all roles and add them to the file; returns their record.

    weights: "shared" makes them inputs of all plans, "embedded" puts a copy into each
    step: shown while a plan is built
    Raises TrolError, before anything is built, where this machine cannot build the target or the file cannot be added
    to, and when a build fails: the file is as it was then.
    """
    machine = describe_machine()
    bundle = Bundle.open(path)
    require_buildable(target, machine, precision=bundle.manifest.precision)
    package = import_tensorrt(target)
    mixer = build_mixer_as(package, machine)
    built_for = _built_for(package, bundle, weights, mixer, machine.sm)
    if weights == "embedded":
        with step("verify the weights"):
            bundle.verify()
    plans: dict[str, bytes] = {}
    computes: dict[str, Mapping[str, str]] = {}
    for role, built in build_plans(package, bundle, weights, mixer, step):
        plans[role], computes[role] = built.plan, what_computes(built)
    return add_plan(path, built_for.plan(tuple(plans), {}, computes), plans).plan


def what_computes(built: BuiltPlan) -> dict[str, str]:
    """By group of layers, how many of them have which type: {"norms": "fp32 9"}."""
    return {
        group: ", ".join(f"{_NAMES.get(name, name.lower())} {count}" for name, count in types.items())
        for group, types in built.types.items()
    }


def build_mixer_as(package: TensorRTPackage, machine: MachineDescription) -> MixerForm:
    """The plugin where the package, the GPU and its driver take it; where they do not, a warning says why."""
    if not package.plugins:
        return "function"
    try:
        register_mixer(_sm_number(machine), _cuda_release(machine))
    except TrolError as missing:
        warnings.warn(f"the mixer is built as a function: {missing}", stacklevel=2)
        return "function"
    return "plugin"


def _sm_number(machine: MachineDescription) -> int:
    """87 for "8.7"."""
    return int((machine.sm or "0").replace(".", ""))


def _cuda_release(machine: MachineDescription) -> tuple[int, int]:
    """What the driver runs, (0, 0) where it does not say."""
    major, minor, *_ = (*version_numbers((machine.nvidia.cuda if machine.nvidia else None) or ""), 0, 0)
    return major, minor


def _built_for(
    package: TensorRTPackage, bundle: Bundle, weights: WeightForm, mixer: MixerForm, sm: str | None
) -> BuiltFor:
    """A plan for RTX is portable between GPUs and systems, one of full TensorRT is this machine's."""
    sms: tuple[str, ...]
    if package.target == "tensorrt-rtx":
        sms, platform = _RTX_SMS, None
    else:
        assert sm is not None  # require_buildable saw to it
        sms, platform = (sm,), this_platform()
    return BuiltFor(
        target=package.target,
        version=package.version,
        sm=sms,
        platform=platform,
        limits=bundle.manifest.limits,
        precision=bundle.manifest.precision,
        weights=weights,
        mixer=mixer,
        graphs=graphs_sha256(bundle.manifest),
    )
