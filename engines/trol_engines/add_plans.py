"""Builds a target's plans from the graphs in an engine file, and adds them to it or keeps them for this machine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from trol_engines.built_types import built_types
from trol_engines.mixer_plugin import register_mixer
from trol_engines.plan_builder import BuiltPlan
from trol_engines.plan_set import MixerForm, PlanForm, build_plans
from trol_engines.tensorrt_package import TensorRTPackage, import_tensorrt
from trol_runtime.bundle import Bundle
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.machine import MachineDescription, describe_machine
from trol_runtime.manifest import Opset, PlanEntry
from trol_runtime.plan_choice import BuiltFor, Device, graphs_sha256, this_platform
from trol_runtime.plan_store import add_plan, keep_plan
from trol_runtime.progress import step
from trol_runtime.target_support import known_sm, opset_for, require_buildable
from trol_runtime.version_numbers import version_numbers
from trol_runtime.weight_form import WeightForm, best_form

# A plan built without further configuration runs on these: 8.0, 8.6, 8.9, 12.0 and later; one for Turing must be asked
# for (TensorRT-RTX, "CPU-Only AOT and TensorRT-RTX Engines").
_RTX_SMS, _TURING = ("8.0", "8.6", "8.9", "12.0", "12.1"), "7.5"
_COPIES = 3  # of the language model's weights where they are embedded: prefill, decode and extend hold one each

_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}


class _Built(NamedTuple):
    """Plans of all roles of an engine, not yet kept anywhere."""

    bundle: Bundle
    plan: PlanEntry
    contents: Mapping[str, bytes]


def add_plans(path: Path, target: str, weights: WeightForm | None = None, opset: Opset | None = None) -> PlanEntry:
    """Build the plans of all roles and add them to the file; returns their record. Progress goes to stderr.

    weights: "shared" makes them inputs of all plans, "embedded" puts a copy into each; None: the better one, as far as
      is known here
    opset: the form of the graphs; None: the newest that the target's library reads
    Raises TrolError, before anything is built, where this machine cannot build the target or the file cannot be added
    to, and when a build fails: the file is as it was then.
    """
    _, plan, contents = _build(path, target, weights, opset)
    return add_plan(path, plan, contents).plan


def keep_plans(path: Path, target: str) -> Path:
    """Build the plans of all roles for this machine, and keep them where it finds them again: in which file or folder.

    Progress goes to stderr. Raises TrolError as `add_plans`, but where the file cannot be added to only if the user's
    cache directory cannot be, either.
    """
    bundle, plan, contents = _build(path, target, None, None)
    return keep_plan(bundle, plan, contents).place


def _build(path: Path, target: str, weights: WeightForm | None, opset: Opset | None) -> _Built:
    machine = describe_machine()
    bundle = Bundle.open(path)
    require_buildable(target, machine, precision=bundle.manifest.precision, opset=opset)
    package = import_tensorrt(target)
    here = Device(target, package.version, machine.sm or "", this_platform())
    form = _form(
        package,
        machine,
        weights or (best_form(here, bundle.manifest.precision) if _can_embed(package, machine, bundle) else "shared"),
        opset or opset_for(target, package.version),
    )
    built_for = _built_for(package, bundle, form, machine)
    if form.weights == "embedded":
        with step("verify the weights"):
            bundle.verify()
    plans: dict[str, bytes] = {}
    computes: dict[str, Mapping[str, str]] = {}
    has_gpu = machine.sm is not None
    for role, built in build_plans(package, bundle, form):
        inspected = built_types(package.trt, built.plan) if has_gpu else {}
        plans[role], computes[role] = built.plan, what_computes(built, inspected)
    return _Built(bundle, built_for.plan(tuple(plans), {}, computes), plans)


def _can_embed(package: TensorRTPackage, machine: MachineDescription, bundle: Bundle) -> bool:
    """Whether the package puts weights into plans, and all copies take no more than half of the GPU's memory.

    The other half is for caches and activations.
    """
    memory = machine.gpu.memory if machine.gpu else None
    weights = sum(tensor.nbytes for tensor in bundle.manifest.tensors.values())
    return package.takes_weights and memory is not None and 2 * _COPIES * weights <= memory


def _form(package: TensorRTPackage, machine: MachineDescription, weights: WeightForm, opset: Opset) -> PlanForm:
    """Raises UsageError where the package cannot put weights into plans."""
    if weights == "embedded" and not package.takes_weights:
        raise UsageError(
            f"{package.target} {package.version} cannot put the weights into plans, 10.13 and newer can; leave out "
            "--weights embedded"
        )
    # Written out in a legacy graph, the mixer is no node that a plugin could take the place of.
    mixer: MixerForm = "function" if opset == "legacy" else build_mixer_as(package, machine)
    only_sm = _TURING if (package.target, machine.sm) == ("tensorrt-rtx", _TURING) else None
    return PlanForm(weights, mixer, opset, only_sm)


def what_computes(built: BuiltPlan, inspected: Mapping[str, int]) -> dict[str, str]:
    """By group of layers, how many of them have which type: {"norms": "fp32 9"}.

    inspected: of the layers that were built from all of these, where that is known
    """
    groups = {**built.types, **({"as built": inspected} if inspected else {})}
    return {
        group: ", ".join(f"{_NAMES.get(name, name.lower())} {count}" for name, count in types.items())
        for group, types in groups.items()
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


def _built_for(package: TensorRTPackage, bundle: Bundle, form: PlanForm, machine: MachineDescription) -> BuiltFor:
    """A plan for RTX is portable between GPUs and systems, one of full TensorRT is this machine's."""
    sms: tuple[str, ...]
    if package.target == "tensorrt-rtx":
        sms, platform = (form.only_sm,) if form.only_sm else _RTX_SMS, None
    else:
        sms, platform = (known_sm(machine),), this_platform()
    return BuiltFor(
        target=package.target,
        version=package.version,
        sm=sms,
        platform=platform,
        limits=bundle.manifest.limits,
        precision=bundle.manifest.precision,
        weights=form.weights,
        mixer=form.mixer,
        opset=form.opset,
        graphs=graphs_sha256(bundle.manifest),
    )
