"""Engine files with another manifest, signed anew: any value in any place of it.

Some keys say what the model is; a file with others is another engine, which may give another answer: `model`,
`prompt`, `generation` and `limits`. All others are for checking and for showing: with them changed, an engine is
refused or answers as before.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from fuzz.case import Case, Rule
from fuzz.engine_file import ENGINE, EngineParts, answer, contents
from fuzz.mutations import HOSTILE_VALUES, damaged_bytes, damaged_json, json_bytes, paths, replaced
from fuzz.seeds import ARCHS, engine_path

DEFINING_KEYS = frozenset({"model", "prompt", "generation", "limits"})

# Entries of long tables are all alike: the listed cases take the first two of each.
_MOST_OF_A_TABLE = 2


class EngineManifests:
    """Every hostile value in the place of every field, then anything."""

    name = "engine manifests"
    seeds = ARCHS

    def __init__(self, seeds: Path) -> None:
        self._parts = {arch: EngineParts.of(engine_path(seeds, arch).read_bytes()) for arch in ARCHS}
        self._answers = {arch: answer(engine_path(seeds, arch)) for arch in ARCHS}

    @property
    def systematic(self) -> int:
        return len(self._places) * len(HOSTILE_VALUES)

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {ENGINE: self._parts[seed].data})

    def case(self, number: int) -> Case:
        # A prime step: the first cases, all that the fast tests run, come from everywhere.
        if number < self.systematic:
            place, index = divmod(number * 7919 % self.systematic, len(HOSTILE_VALUES))
            seed, path = self._places[place]
            manifest = json_bytes(replaced(self._parts[seed].manifest, path, HOSTILE_VALUES[index]))
            return self._case(number, seed, f"{'.'.join(map(str, path))} is now hostile value {index}", manifest)
        rng = Random(f"{self.name} {number}")
        seed = rng.choice(self.seeds)
        if rng.random() < 0.1:
            damaged = damaged_bytes(json_bytes(self._parts[seed].manifest), rng)
        else:
            damaged = damaged_json(self._parts[seed].manifest, rng)
        return self._case(number, seed, damaged.change, damaged.data)

    def read(self, folder: Path, case: Case) -> bool:
        path = folder / ENGINE
        contents(path)
        return answer(path) == self._answers[case.seed]

    def extra_memory(self, case: Case) -> int:
        return 0

    def _case(self, number: int, seed: str, change: str, manifest: bytes) -> Case:
        rule = Rule.OWN if _changed_keys(self._parts[seed].manifest, manifest) & DEFINING_KEYS else Rule.SAME
        return Case(number, seed, change, rule, {ENGINE: self._parts[seed].signed(manifest)})

    @cached_property
    def _places(self) -> list[tuple[str, tuple[str | int, ...]]]:
        return [(arch, path) for arch in ARCHS for path in paths(_abridged(self._parts[arch].manifest))]


def _abridged(value: Any) -> Any:
    if isinstance(value, list):
        return [_abridged(item) for item in value[:_MOST_OF_A_TABLE]]
    if not isinstance(value, dict):
        return value
    tables = all(isinstance(item, dict) for item in value.values())
    items = list(value.items())[: _MOST_OF_A_TABLE if tables else None]
    return {key: _abridged(item) for key, item in items}


def _changed_keys(whole: dict[str, Any], changed: bytes) -> set[str]:
    try:
        values = json.loads(changed)
    except (ValueError, RecursionError):
        return set()
    if not isinstance(values, dict):
        return set()
    return {key for key in whole.keys() | values.keys() if whole.get(key) != values.get(key)}
