"""The plans of one target for all roles of an engine file, from the graphs that lie in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trol_engines.mixer_plugin import call_plugin
from trol_engines.plan_builder import BuiltPlan, build_plan
from trol_engines.plan_graph import as_bytes, external_weights, fix_cache_length, read_graph, weights_to_inputs
from trol_engines.plan_profile import axis_ranges, shape_ranges
from trol_engines.tensorrt_package import TensorRTPackage
from trol_runtime.bundle import Bundle
from trol_runtime.manifest import GraphEntry, TensorEntry

# "shared": inputs, so that all plans read one copy; "embedded": a copy in each plan, which a build may rearrange.
WeightForm = Literal["shared", "embedded"]
# As a plugin of ours, or as the nodes of its function.
MixerForm = Literal["plugin", "function"]


def build_plans(
    package: TensorRTPackage,
    bundle: Bundle,
    weights: WeightForm,
    mixer: MixerForm,
    step: Callable[[str], AbstractContextManager[None]],
) -> Iterator[tuple[str, BuiltPlan]]:
    """Role and plan, one at a time in the order of the manifest.

    mixer: "plugin" where it is registered. step: shown while a plan is built. Raises TrolError where one cannot be.
    """
    for role, graph in bundle.manifest.graphs.items():
        with step(f"build the {package.target} plan of {role}"):
            plan = _build(package, bundle, role, graph, weights, mixer)
        yield role, plan


def _build(
    package: TensorRTPackage, bundle: Bundle, role: str, entry: GraphEntry, weights: WeightForm, mixer: MixerForm
) -> BuiltPlan:
    manifest = bundle.manifest
    graph = read_graph(bundle.read(entry.entry))
    fix_cache_length(graph, manifest.limits.max_seq)
    if mixer == "plugin":
        call_plugin(graph)
    embedded = None
    if weights == "shared":
        weights_to_inputs(graph)
    else:
        embedded = mapped_weights(bundle, {name: manifest.tensors[name] for name in external_weights(graph)})
    axes = axis_ranges(role, manifest.model, manifest.limits)
    ranges = shape_ranges(entry.inputs, axes, manifest.limits.max_seq)
    return build_plan(package, as_bytes(graph), ranges, embedded)


def mapped_weights(bundle: Bundle, tensors: Mapping[str, TensorEntry]) -> dict[str, NDArray[np.uint8]]:
    """The bytes of tensors as they lie in the file, mapped and not read."""
    arena = np.memmap(bundle.path, np.uint8, "r", offset=bundle.arena_offset)
    return {name: arena[tensor.offset : tensor.offset + tensor.nbytes] for name, tensor in tensors.items()}
