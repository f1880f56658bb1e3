"""Builds a target's plans from the graphs in an engine file, and adds them to it or keeps them for this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from trol_engines.built_types import built_types
from trol_engines.mixer_plugin import register_mixer
from trol_engines.plan_set import MixerForm, PlanForm, RolePlan, build_plans
from trol_engines.plan_spool import spool
from trol_engines.tensorrt_package import TensorRTPackage, import_tensorrt
from trol_runtime.bundle import Bundle
from trol_runtime.bundle_appender import BundleAppender
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.machine import MachineDescription, describe_machine
from trol_runtime.manifest import Opset, PlanEntry
from trol_runtime.plan_choice import BuiltFor, Device, gpu_model, graphs_sha256, this_platform
from trol_runtime.plan_store import StoredPlan, add_plan, describe_plan, keep_plan
from trol_runtime.progress import step
from trol_runtime.target_support import known_sm, opset_for, require_buildable
from trol_runtime.user_cache import cache_directory, make_folder
from trol_runtime.version_numbers import version_numbers
from trol_runtime.weight_form import WeightForm, best_form

# A plan built without further configuration runs on these: 8.0, 8.6, 8.9, 12.0 and later; one for Turing must be asked
# for (TensorRT-RTX, "CPU-Only AOT and TensorRT-RTX Engines").
_RTX_SMS, _TURING = ("8.0", "8.6", "8.9", "12.0", "12.1"), "7.5"
_COPIES = 3  # of the language model's weights where they are embedded: prefill, decode and extend hold one each

_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}


class _Built(NamedTuple):
    """Plans of all roles of an engine, not yet kept anywhere.

    inspectable: whether there is a GPU to ask about them
    """

    bundle: Bundle
    package: TensorRTPackage
    plan: PlanEntry
    contents: Mapping[str, memoryview]
    inspectable: bool


def add_plans(path: Path, target: str, weights: WeightForm | None = None, opset: Opset | None = None) -> PlanEntry:
    """Build the plans of all roles and add them to the file; returns their record. Progress goes to stderr.

    weights: "shared" makes them inputs of all plans, "embedded" puts a copy into each; None: the better one, as far as
      is known here
    opset: the form of the graphs; None: the newest that the target's library reads
    Raises TrolError, before anything is built, where this machine cannot build the target or the file cannot be added
    to, and when a build fails: the file is as it was then.
    """
    with BundleAppender(path):
        pass  # what cannot be added to is refused now, not when minutes have gone into plans
    built = _build(path, target, weights, opset)
    return _as_built(add_plan(path, built.plan, built.contents), built).plan


def keep_plans(path: Path, target: str) -> Path:
    """Build the plans of all roles for this machine, and keep them where it finds them again: in which file or folder.

    Progress goes to stderr. Raises TrolError as `add_plans`, but where the file cannot be added to only if the user's
    cache directory cannot be, either.
    """
    built = _build(path, target, None, None)
    return _as_built(keep_plan(built.bundle, built.plan, built.contents), built).place


def _build(path: Path, target: str, weights: WeightForm | None, opset: Opset | None) -> _Built:
    machine = describe_machine()
    bundle = Bundle.open(path)
    require_buildable(target, machine, precision=bundle.manifest.precision, opset=opset)
    package = import_tensorrt(target)
    here = Device(target, package.version, machine.sm or "", this_platform(), gpu_model(target, machine))
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
    folder = _spool_folder(bundle.path)
    # Not a loop, whose variable would hold one plan while the next is built.
    built = list(map(lambda plan: _spooled(plan, folder), build_plans(package, bundle, form)))
    built_for = replace(built_for, mixer=_built_mixer(form.mixer, built, package))
    contents = {one.role: one.plan for one in built}
    plan = built_for.plan(tuple(contents), {}, {one.role: one.computes for one in built})
    return _Built(bundle, package, plan, contents, machine.sm is not None)


class _Spooled(NamedTuple):
    """What is left in memory of a plan that was built: `plan` lies on the disk."""

    role: str
    plan: memoryview
    computes: dict[str, str]
    inlined_mixers: int


def _spooled(plan: RolePlan, folder: Path) -> _Spooled:
    role, built, inlined_mixers = plan
    return _Spooled(role, spool(built.plan, folder), what_computes(built.types), inlined_mixers)


def _spool_folder(engine: Path) -> Path:
    """Beside the engine file, as the plans are to go into it; else on the disk that is to take them instead."""
    if os.access(engine.parent, os.W_OK):
        return engine.parent
    make_folder(cache_directory())
    return cache_directory()


def _built_mixer(asked: MixerForm, built: Iterable[_Spooled], package: TensorRTPackage) -> MixerForm:
    """What the mixer was built as: the plugin only where every call of it became one; else a warning says so."""
    without = [one.role for one in built if one.inlined_mixers]
    if not without:
        return asked
    warnings.warn(
        f"{package.target} {package.version} built the mixer of {', '.join(without)} as a function, expected the "
        "plugin that is registered; the plans run without it; please report: trol-inspect --system",
        stacklevel=2,
    )
    return "function"


def _as_built(stored: StoredPlan, built: _Built) -> StoredPlan:
    """The same plan, and in its record what a GPU here says of its layers; it is kept before anybody asks."""
    if not built.inspectable:
        return stored
    try:
        computes = {role: {**stored.plan.computes[role], **_inspected(built.package, stored, role)} for role in stored}
        return stored if computes == stored.plan.computes else describe_plan(built.bundle, stored, computes)
    except TrolError as error:
        warnings.warn(f"the plans are kept; which types were built is not recorded: {error}", stacklevel=2)
        return stored


def _inspected(package: TensorRTPackage, stored: StoredPlan, role: str) -> dict[str, str]:
    types = built_types(package.trt, stored.read(role))
    return what_computes({"as built": types} if types else {})


def _can_embed(package: TensorRTPackage, machine: MachineDescription, bundle: Bundle) -> bool:
    """Whether the package puts weights into plans, and all copies take no more than half of the GPU's memory.

    The other half is for caches and activations. On a Jetson that memory is the host's, too, where each plan lies once
    more while it is loaded.
    """
    memory = machine.gpu.memory if machine.gpu else None
    weights = sum(tensor.nbytes for tensor in bundle.manifest.tensors.values())
    copies = _COPIES + (machine.jetson is not None)
    return package.takes_weights and memory is not None and 2 * copies * weights <= memory


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


def what_computes(groups: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """By group of layers, how many of them have which type: {"norms": "fp32 9"}."""
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
        gpu=gpu_model(package.target, machine),
        platform=platform,
        limits=bundle.manifest.limits,
        precision=bundle.manifest.precision,
        weights=form.weights,
        mixer=form.mixer,
        opset=form.opset,
        graphs=graphs_sha256(bundle.manifest),
    )
