"""Engine files that a plan was added to: torn and damaged behind their first end, or written anew to pass off a plan.

What was added is there whole or not at all, and no plan comes out that was not signed here, whatever the hashes say.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from random import Random

from fuzz.case import Case, Rule, WrongAnswerError
from fuzz.engine_file import ENGINE, EngineParts, contents
from fuzz.mutations import Raw, damaged_bytes, damaged_json, flipped, json_bytes
from fuzz.seeds import CACHE, PLANNED_ENGINE, SMALL_ENGINE
from small_plan import SMALL_CONTENTS, SMALL_DEVICE
from trol_runtime.bundle import Bundle
from trol_runtime.manifest import PlanEntry
from trol_runtime.plan_choice import entry_of
from trol_runtime.plan_store import find_plan

Plan = tuple[PlanEntry, dict[str, bytes]]


class EnginePlans:
    """Cuts and a flipped bit at every byte that was added, then any damage there, then plans passed off."""

    name = "engine plans"
    seeds = (PLANNED_ENGINE,)

    def __init__(self, seeds: Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(seeds / CACHE)  # where the key lies that the plan was signed with
        self._parts = EngineParts.of((seeds / PLANNED_ENGINE).read_bytes())
        self._first_end = (seeds / SMALL_ENGINE).stat().st_size
        self._before, self._after = contents(seeds / SMALL_ENGINE), contents(seeds / PLANNED_ENGINE)
        plan = _plan(seeds / PLANNED_ENGINE)
        assert plan is not None
        self._plan = plan

    @property
    def systematic(self) -> int:
        return 2 * len(self._added)

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {ENGINE: self._parts.data})

    def case(self, number: int) -> Case:
        data = self._parts.data
        if number < len(self._added):
            at = self._added[number]
            return self._case(number, f"cut at byte {at}", data[:at])
        if number < self.systematic:
            at = self._added[number - len(self._added)]
            return self._case(number, f"bit flipped at byte {at}", flipped(data, at, number % 8))
        rng = Random(f"{self.name} {number}")
        if rng.random() < 0.4:
            damaged = damaged_bytes(data, rng, [self._added])
            return self._case(number, damaged.change, damaged.data)
        return self._passed_off(number, rng)

    def read(self, folder: Path, case: Case) -> bool:
        path = folder / ENGINE
        found, plan = contents(path), _plan(path)
        if plan not in (None, self._plan):
            raise WrongAnswerError("a plan came out that was not signed")
        if found == self._before:
            return plan is None
        return found == self._after and plan == self._plan

    def extra_memory(self, case: Case) -> int:
        return 0

    @cached_property
    def _added(self) -> range:
        """The bytes behind the first end."""
        return range(self._first_end, len(self._parts.data))

    def _case(self, number: int, change: str, data: bytes) -> Case:
        return Case(number, PLANNED_ENGINE, change, Rule.SAME, {ENGINE: data})

    def _passed_off(self, number: int, rng: Random) -> Case:
        """Another record of the plan, or other contents, with hashes that fit."""
        if rng.random() < 0.5:
            manifest = self._parts.manifest
            *others, record = manifest["plans"]
            damaged = damaged_json(record, rng)
            sealed = self._parts.signed(json_bytes({**manifest, "plans": [*others, Raw(damaged.data.decode())]}))
            return Case(number, PLANNED_ENGINE, f"the plan's {damaged.change}", Rule.OWN, {ENGINE: sealed})
        role = rng.choice(sorted(SMALL_CONTENTS))
        damaged = damaged_bytes(SMALL_CONTENTS[role], rng)
        data = self._parts.with_entries({entry_of(self._plan[0], role): damaged.data})
        return Case(number, PLANNED_ENGINE, f"{role}: {damaged.change}", Rule.OWN, {ENGINE: data})


def _plan(path: Path) -> Plan | None:
    """The plan for the small plan's device that may run, and what it holds."""
    stored = find_plan(Bundle.open(path), SMALL_DEVICE)
    return None if stored is None else (stored.plan, {role: stored.read(role) for role in SMALL_CONTENTS})
