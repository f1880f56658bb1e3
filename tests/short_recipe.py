"""A recipe of few and small steps, for tests of how training goes rather than of what it learns."""

from __future__ import annotations

from typing import Any

from trol_export.tiny.packing import Room
from trol_export.tiny.recipe import RELEASED, Phase, PhaseName, Recipe

ALL_PHASES: tuple[PhaseName, ...] = ("tower", "language", "words", "alignment", "decoder", "everything")


def short_recipe(*names: PhaseName, steps: int = 2, batch: int = 2, **changes: Any) -> Recipe:
    """The phases of these names, all six unless given; few questions a picture; `changes` to anything else."""
    kinds = {phase.name: phase.kinds for phase in RELEASED.phases}
    phases = tuple(
        Phase(name, steps, batch, learning_rate=1e-3, warm_up=1, kinds=kinds[name]) for name in names or ALL_PHASES
    )
    return Recipe(phases, **{"questions": 4, "room": Room(prompts=96, answers=44), **changes})
