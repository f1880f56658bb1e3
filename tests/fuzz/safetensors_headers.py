"""Safetensors files with other headers: ours reads the layout by itself, so it is held against the library.

A file the library refuses must not be taken, and one that both take must hold the same tensors, byte for byte. Ours may
refuse more: the official loader would take the last of two tensors of one name, an export takes neither.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from safetensors import deserialize

from fuzz.case import Case, Rule, WrongAnswerError
from fuzz.mutations import EDGES, damaged_bytes, damaged_json, json_bytes
from trol_export.weight_files import SafetensorsFile
from trol_runtime.manifest import DTYPE_BYTES

FILE = "model.safetensors"
_DATA = bytes(range(96))
_HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "F16", "shape": [4, 6], "data_offsets": [24, 72]},
    "c.scale": {"dtype": "BF16", "shape": [], "data_offsets": [72, 74]},
    "d.empty": {"dtype": "I64", "shape": [0, 5], "data_offsets": [74, 74]},
    "e.bits": {"dtype": "U8", "shape": [22], "data_offsets": [74, 96]},
}


class SafetensorsHeaders:
    """Values of the header, tensors moved onto and away from each other, lengths, and bytes."""

    name = "safetensors"
    seeds = ("small",)

    def __init__(self, seeds: Path) -> None:
        self._file = _file(json_bytes(_HEADER))

    @property
    def systematic(self) -> int:
        return 0

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {FILE: self._file})

    def case(self, number: int) -> Case:
        rng = Random(f"{self.name} {number}")
        kind = rng.choice(("json", "json", "offsets", "length", "bytes"))
        if kind == "json":
            header, change = damaged_json(_HEADER, rng)
            data = _file(header)
        elif kind == "offsets":
            header, change = _moved_tensors(rng)
            data = _file(header)
        elif kind == "length":
            length = rng.choice((*EDGES, 100_000_000, 100_000_001, rng.randrange(600)))
            data, change = length.to_bytes(8, "little") + self._file[8:], f"a header of {length} bytes"
        else:
            data, change = damaged_bytes(self._file, rng)
        return Case(number, "small", change, Rule.OWN, {FILE: data})

    def read(self, folder: Path, case: Case) -> bool:
        file = SafetensorsFile(folder / FILE)
        ours = {
            name: (info.dtype, list(info.shape), b"".join(chunk.tobytes() for chunk in file.chunks(name, 7)))
            for name, info in file.tensors.items()
        }
        try:
            library = dict(deserialize(case.files[FILE]))
        except Exception as error:
            raise WrongAnswerError(f"taken, but the library says: {error}") from None
        theirs = {name: (part["dtype"], part["shape"], bytes(part["data"])) for name, part in library.items()}
        if ours != theirs:
            raise WrongAnswerError(f"read as {sorted(ours)}, otherwise than by the library: {sorted(theirs)}")
        return case.files[FILE] == self._file

    def extra_memory(self, case: Case) -> int:
        return 0


def _file(header: bytes, data: bytes = _DATA) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _moved_tensors(rng: Random) -> tuple[bytes, str]:
    """Tensors that overlap, leave a hole, or span what is not there, each true to its own shape or not."""
    header = json.loads(json_bytes(_HEADER))
    names = [name for name in header if name != "__metadata__"]
    changes = []
    for name in rng.sample(names, rng.choice((1, 1, 2))):
        entry = header[name]
        begin, end = entry["data_offsets"]
        shift = rng.choice((-24, -1, 1, 24, -begin, 96 - end, *EDGES))
        if rng.random() < 0.5:
            entry["data_offsets"] = [begin + shift, end + shift]
        elif rng.random() < 0.5:
            entry["data_offsets"] = [begin, end + shift]
        else:
            width = DTYPE_BYTES[entry["dtype"]]
            entry["shape"] = rng.choice(([shift], [shift, width], [2**32, 2**32], [2**63, 2, 0], [1] * 5000))
        changes.append(f"{name} {entry['data_offsets']} {str(entry['shape'])[:40]}")
    return json_bytes(header), ", ".join(changes)
