"""TroL-tiny, as it is shipped, with plans in both forms of weights: what is in them, and what the file then holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import exported_once
from trol_engines.add_plans import add_plans
from trol_engines.plan_graph import external_weights, read_graph
from trol_export.tiny.packaged import packaged_checkpoint
from trol_runtime.bundle import Bundle
from trol_runtime.manifest import PlanEntry
from trol_runtime.plan_choice import entry_of
from trol_runtime.weight_form import WeightForm

pytest.importorskip("tensorrt_rtx", reason="plans of the target tensorrt-rtx need the extra rtx")

ROLES = ("decode", "extend", "prefill", "vision")
FORMS: tuple[WeightForm, ...] = ("shared", "embedded")


class Tiny(NamedTuple):
    """The file with all its plans."""

    bundle: Bundle
    plans: dict[WeightForm, PlanEntry]

    def bytes_of(self, form: WeightForm, role: str) -> int:
        return self.bundle.entries[entry_of(self.plans[form], role)].size


@pytest.fixture(scope="module")
def tiny(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    folder = tmp_path_factory.mktemp("tiny")
    exported = exported_once(run_folder / "trol-tiny-fp16.plan", packaged_checkpoint(), "fp16")
    engine = Path(shutil.copy(exported, folder / "engine.plan"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        plans = {form: add_plans(engine, "tensorrt-rtx", form) for form in FORMS}
        yield Tiny(Bundle.open(engine), plans)


@pytest.mark.parametrize("form", FORMS)
def test_all_roles_are_built(tiny: Tiny, form: WeightForm) -> None:
    plan = tiny.plans[form]
    assert (plan.roles, plan.precision, plan.weights) == (ROLES, "fp16", form)
    assert "fp16" in plan.computes["decode"]["matrix products"]
    assert all(tiny.bytes_of(form, role) > 0 for role in ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_an_embedded_plan_is_larger_by_the_weights_of_its_role(tiny: Tiny, role: str) -> None:
    """About: its code is not quite that of a plan whose weights are inputs."""
    manifest = tiny.bundle.manifest
    graph = read_graph(tiny.bundle.read(manifest.graphs[role].entry))
    weights = sum(manifest.tensors[name].nbytes for name in external_weights(graph))
    more = tiny.bytes_of("embedded", role) - tiny.bytes_of("shared", role)
    assert 0.7 * weights < more < 1.1 * weights


def test_the_file_holds_its_weights_once_its_plans_its_graphs_and_little_else(tiny: Tiny) -> None:
    """Else: the tokenizer, manifests and directories, records of the archive, and zeros before the weights."""
    manifest, entries = tiny.bundle.manifest, tiny.bundle.entries
    weights = sum(tensor.nbytes for tensor in manifest.tensors.values())
    named = [
        *(graph.entry for graph in manifest.graphs.values()),
        *(e for plan in manifest.plans for e in plan.entries),
    ]
    rest = tiny.bundle.path.stat().st_size - weights - sum(entries[name].size for name in dict.fromkeys(named))
    assert 0 < rest < 300_000
