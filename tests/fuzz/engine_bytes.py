"""Engine files with changed bytes: everything that is not weights is found when opening, the weights by `verify`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from random import Random

from fuzz.case import Case, Rule
from fuzz.engine_file import ENGINE, EngineParts, answer, contents
from fuzz.mutations import damaged_bytes, flipped
from fuzz.seeds import ARCHS, SMALL_ENGINE, engine_path
from trol_runtime.bundle import ARENA_ENTRY, MANIFEST_ENTRY

# The JSON of the arena's header and what is filled up behind it.
_ARENA_HEADER_BYTES = 4096


class EngineBytes:
    """Cuts at every byte of manifest and directory, a flipped bit in every byte of every header, then anything.

    Whatever still opens and verifies must be the file it was.
    """

    name = "engine bytes"
    seeds = (SMALL_ENGINE, *ARCHS)

    def __init__(self, seeds: Path) -> None:
        self._parts = {SMALL_ENGINE: EngineParts.of((seeds / SMALL_ENGINE).read_bytes())}
        self._parts |= {arch: EngineParts.of(engine_path(seeds, arch).read_bytes()) for arch in ARCHS}
        self._contents = {
            seed: contents(seeds / SMALL_ENGINE if seed == SMALL_ENGINE else engine_path(seeds, seed))
            for seed in self.seeds
        }
        self._answers = {arch: answer(engine_path(seeds, arch)) for arch in ARCHS}

    @property
    def systematic(self) -> int:
        return len(self._listed)

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {ENGINE: self._parts[seed].data})

    def case(self, number: int) -> Case:
        if number < self.systematic:
            seed, change, at = self._listed[number]
            whole = self._parts[seed].data
            data = whole[:at] if change == "cut" else flipped(whole, at, number % 8)
            return Case(number, seed, f"{change} at byte {at}", Rule.SAME, {ENGINE: data})
        rng = Random(f"{self.name} {number}")
        seed = rng.choice(self.seeds)
        parts = self._parts[seed]
        damaged = damaged_bytes(parts.data, rng, _places(parts))
        return Case(number, seed, damaged.change, Rule.SAME, {ENGINE: damaged.data})

    def read(self, folder: Path, case: Case) -> bool:
        path = folder / ENGINE
        if contents(path) != self._contents[case.seed]:
            return False
        return case.seed == SMALL_ENGINE or answer(path) == self._answers[case.seed]

    def extra_memory(self, case: Case) -> int:
        return 0

    @cached_property
    def _listed(self) -> list[tuple[str, str, int]]:
        """Seed, change and byte of the cases that are not random."""
        small = self._parts[SMALL_ENGINE]
        cuts = range(small.record(MANIFEST_ENTRY).header_offset, len(small.data))
        listed = [(SMALL_ENGINE, "cut", at) for at in cuts]
        for seed, parts in self._parts.items():
            headers = [parts.header_range(record) for record in parts.records]
            places = [*headers, range(parts.directory_offset, len(parts.data))]
            listed += [(seed, "bit flipped", at) for place in places for at in place]
        return listed


def _places(parts: EngineParts) -> list[range]:
    """Parts of the file, all as likely to be hit: headers, contents, directory, end record."""
    places = [parts.header_range(record) for record in parts.records]
    for record in parts.records:
        content = parts.content_range(record)
        places.append(content[:_ARENA_HEADER_BYTES] if record.name == ARENA_ENTRY else content)
    end = len(parts.data)
    return [*places, range(parts.directory_offset, end), range(end - 86, end)]


class EngineWeights:
    """Changed bytes in the arena, of which `verify` must find each and every one."""

    name = "engine weights"
    seeds = ARCHS

    def __init__(self, seeds: Path) -> None:
        self._parts = {arch: EngineParts.of(engine_path(seeds, arch).read_bytes()) for arch in ARCHS}
        self._contents = {arch: contents(engine_path(seeds, arch)) for arch in ARCHS}

    @property
    def systematic(self) -> int:
        return 0

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {ENGINE: self._parts[seed].data})

    def case(self, number: int) -> Case:
        rng = Random(f"{self.name} {number}")
        seed = rng.choice(self.seeds)
        parts = self._parts[seed]
        at, bit = rng.choice(parts.content_range(parts.record(ARENA_ENTRY))), rng.randrange(8)
        return Case(number, seed, f"bit {bit} of byte {at}", Rule.REFUSE, {ENGINE: flipped(parts.data, at, bit)})

    def read(self, folder: Path, case: Case) -> bool:
        return contents(folder / ENGINE) == self._contents[case.seed]

    def extra_memory(self, case: Case) -> int:
        return 0
