"""The plans of one target for all roles of an engine file, from the graphs that lie in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trol_engines.build_progress import BuildProgress
from trol_engines.mixer_plugin import call_plugin
from trol_engines.plan_builder import BuiltPlan, build_plan
from trol_engines.plan_graph import (
    as_bytes,
    cache_length,
    external_weights,
    input_values,
    plan_graph,
    weights_to_inputs,
)
from trol_engines.plan_profile import axis_ranges, shape_ranges
from trol_engines.tensorrt_package import TensorRTPackage
from trol_runtime.bundle import Bundle
from trol_runtime.manifest import Opset, TensorEntry
from trol_runtime.weight_form import WeightForm

# As a plugin of ours, or as the nodes of its function.
MixerForm = Literal["plugin", "function"]


class PlanForm(NamedTuple):
    """How the plans of a set are built, all of them alike.

    mixer: a legacy graph has it written out: "function"
    only_sm: the only compute capability they are for, where the library's own choice would leave it out
    """

    weights: WeightForm
    mixer: MixerForm
    opset: Opset
    only_sm: str | None = None


class RolePlan(NamedTuple):
    """What was built of a role.

    inlined_mixers: how many mixers became the nodes of their function though they were marked for the plugin
    """

    role: str
    built: BuiltPlan
    inlined_mixers: int = 0


def build_plans(package: TensorRTPackage, bundle: Bundle, form: PlanForm) -> Iterator[RolePlan]:
    """One plan at a time in the order of the manifest, none of them kept here; progress goes to stderr.

    form: with the mixer as a plugin only where that is registered
    Raises TrolError where one cannot be built.
    """
    manifest = bundle.manifest
    graphs = {
        role: plan_graph(bundle.read(graph.entry), cache_length(manifest), form.opset)
        for role, graph in manifest.graphs.items()
    }
    progress = BuildProgress(package.target, {role: len(graph.graph) for role, graph in graphs.items()})
    for role, graph in graphs.items():
        with progress.building(role) as say_share:
            plan = _build(package, bundle, role, graph, form, say_share)
        yield plan
        del plan  # it may hold all weights, and so may the next one


def _build(
    package: TensorRTPackage,
    bundle: Bundle,
    role: str,
    graph: ir.Model,
    form: PlanForm,
    say_share: Callable[[float], None],
) -> RolePlan:
    manifest = bundle.manifest
    mixers = call_plugin(graph) if form.mixer == "plugin" else 0
    embedded = None
    if form.weights == "shared":
        weights_to_inputs(graph)
    else:
        embedded = mapped_weights(bundle, {name: manifest.tensors[name] for name in external_weights(graph)})
    ranges = shape_ranges(input_values(graph), axis_ranges(role, manifest.model, manifest.limits))
    built = build_plan(package, as_bytes(graph), ranges, embedded, form.only_sm, say_share)
    return RolePlan(role, built, mixers - sum(built.types.get("mixer", {}).values()) if mixers else 0)


def mapped_weights(bundle: Bundle, tensors: Mapping[str, TensorEntry]) -> dict[str, NDArray[np.uint8]]:
    """The bytes of tensors as they lie in the file, mapped and not read."""
    arena = np.memmap(bundle.path, np.uint8, "r", offset=bundle.arena_offset)
    return {name: arena[tensor.offset : tensor.offset + tensor.nbytes] for name, tensor in tensors.items()}
