"""Archives of valid records that promise what cannot be: a file that lies on purpose, its hashes all right.

The directory says something else than the headers, entries lie over each other, names lead elsewhere, one comes twice,
numbers are as large as they can be. What is refused is fine; what opens must be the engine it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from fuzz.case import Case, Rule
from fuzz.engine_file import ENGINE, EngineParts, contents
from fuzz.mutations import EDGES
from fuzz.seeds import SMALL_ENGINE
from trol_runtime import zip_records
from trol_runtime.bundle import MANIFEST_ENTRY
from trol_runtime.zip_records import Record

NAMES = (
    *("../escape", "/etc/passwd", "a/../../b", "..", ".", "a//b", "a/", "C:\\x", "a\\b", "a b", "a\nb", "a\0b", "é"),
    *("x" * 200, "x" * 5_000, "a/" * 7 + "a", "a/" * 8 + "a", "MANIFEST.JSON", "manifest.json", "weights.safetensors"),
    *("tokenizer.json", "alignment.pad", "graphs/prefill.onnx/x", "graphs", ".hidden", "-o", "con", "%s"),
)


class EngineRecords:
    """Records of the small engine, changed in the directory, in the local headers, or in both alike."""

    name = "engine records"
    seeds = (SMALL_ENGINE,)

    def __init__(self, seeds: Path) -> None:
        self._parts = EngineParts.of((seeds / SMALL_ENGINE).read_bytes())
        self._contents = contents(seeds / SMALL_ENGINE)

    @property
    def systematic(self) -> int:
        return 0

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {ENGINE: self._parts.data})

    def case(self, number: int) -> Case:
        rng = Random(f"{self.name} {number}")
        records, changes = list(self._parts.records), []
        for _ in range(rng.choice((1, 1, 2, 3))):
            change = rng.choice(_CHANGES)
            records = change(records, rng)
            changes.append(change.__name__.strip("_"))
        data, offset = self._parts.data[: self._parts.directory_offset], self._parts.directory_offset
        if rng.random() < 0.6:
            changes.append("local headers agree")
            data = _with_headers(data, records)
        if rng.random() < 0.1:
            changes.append("the directory is said to lie elsewhere")
            offset = rng.choice(EDGES) // 2  # writing adds to it
        comment = hashlib.sha256(self._parts.content(MANIFEST_ENTRY)).hexdigest().encode()
        tail = _directory(records, offset, comment)
        return Case(number, SMALL_ENGINE, ", ".join(changes), Rule.SAME, {ENGINE: data + tail})

    def read(self, folder: Path, case: Case) -> bool:
        return contents(folder / ENGINE) == self._contents

    def extra_memory(self, case: Case) -> int:
        return 0


def _with_headers(data: bytes, records: Sequence[Record]) -> bytes:
    """The local header of every record written where the record says it stands, over what is there."""
    for record in records:
        if record.header_offset < len(data):
            header = zip_records.local_header(_plain(record)).replace(_stand_in(record.name), _coded(record.name))
            data = data[: record.header_offset] + header + data[record.header_offset + len(header) :]
    return data


def _directory(records: Sequence[Record], offset: int, comment: bytes) -> bytes:
    """The writer takes ASCII names only: others are put in afterwards."""
    data = zip_records.directory([_plain(record) for record in records], offset, comment)
    for record in records:
        data = data.replace(_stand_in(record.name), _coded(record.name), 1)
    return data


def _plain(record: Record) -> Record:
    return record if record.name.isascii() else replace(record, name=_stand_in(record.name).decode())


def _stand_in(name: str) -> bytes:
    return name.encode() if name.isascii() else b"Q" * len(_coded(name))


def _coded(name: str) -> bytes:
    return name.encode("latin-1")


def _renamed(records: list[Record], rng: Random) -> list[Record]:
    return _one_changed(records, rng, lambda record: replace(record, name=rng.choice(NAMES)))


def _resized(records: list[Record], rng: Random) -> list[Record]:
    sizes = (0, 1, *EDGES)
    return _one_changed(records, rng, lambda record: replace(record, size=rng.choice((record.size + 1, *sizes))))


def _moved(records: list[Record], rng: Random) -> list[Record]:
    others = [record.header_offset for record in records]
    places = (*others, *EDGES, rng.randrange(200_000))
    return _one_changed(records, rng, lambda record: replace(record, header_offset=rng.choice(places)))


def _another_crc(records: list[Record], rng: Random) -> list[Record]:
    return _one_changed(records, rng, lambda record: replace(record, crc=rng.getrandbits(32)))


def _left_out(records: list[Record], rng: Random) -> list[Record]:
    gone = rng.randrange(len(records)) if records else 0
    return [record for index, record in enumerate(records) if index != gone]


def _doubled(records: list[Record], rng: Random) -> list[Record]:
    return [*records, *rng.choices(records, k=rng.choice((1, 1, 1, 2_000)))] if records else []


def _shuffled(records: list[Record], rng: Random) -> list[Record]:
    return rng.sample(records, len(records))


def _swapped(records: list[Record], rng: Random) -> list[Record]:
    """Two entries exchange their names: the hashes no longer fit."""
    if len(records) < 2:
        return records
    first, second = rng.sample(range(len(records)), 2)
    records = list(records)
    names = records[second].name, records[first].name
    records[first], records[second] = replace(records[first], name=names[0]), replace(records[second], name=names[1])
    return records


def _added(records: list[Record], rng: Random) -> list[Record]:
    """One more entry, inside another one."""
    inside = rng.choice(records).header_offset + rng.randrange(200) if records else 0
    return [*records, Record(rng.choice(NAMES), 0, rng.randrange(100), inside)]


def _one_changed(records: list[Record], rng: Random, change: Callable[[Record], Record]) -> list[Record]:
    records = list(records)
    if records:
        index = rng.randrange(len(records))
        records[index] = change(records[index])
    return records


_CHANGES = (_renamed, _resized, _moved, _another_crc, _left_out, _doubled, _shuffled, _swapped, _added)
