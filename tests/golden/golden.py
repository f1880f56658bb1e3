"""Reads the golden data: outputs of the official TroL code on seeded checkpoints, thinned to fit a repository.

README.md beside this module says what each tensor is and how the files were made.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors import safe_open

FOLDER = Path(__file__).parent


class Thinning(NamedTuple):
    """Which positions of one axis of a thinned tensor were kept: those in the golden tensor named `positions`."""

    axis: int
    positions: str


@dataclass(frozen=True)
class Golden:
    """Official outputs of one architecture.

    tensors: what README.md lists, by name; also as golden[name].
    digests: {sha256, shape, dtype} of tensors that are compared bit for bit and too large to keep; see `digest`.
    spec: the cases: their prompts, pictures and step counts.
    """

    arch: str
    spec: dict[str, Any]
    tensors: dict[str, np.ndarray]
    digests: dict[str, dict[str, Any]]
    thinnings: dict[str, Thinning]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def thin(self, name: str, full: np.ndarray) -> np.ndarray:
        """The part of `full` to hold against golden[name]: all of it, or the positions that were kept."""
        if name not in self.thinnings:
            return full
        axis, positions = self.thinnings[name]
        return np.take(full, self.tensors[positions], axis)


def digest(array: np.ndarray) -> dict[str, Any]:
    """SHA-256 of the array's bytes in C order, with its shape and dtype, as the digest files hold it."""
    sha256 = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return {"sha256": sha256, "shape": list(array.shape), "dtype": str(array.dtype)}


def tensors_path(arch: str) -> Path:
    return FOLDER / f"golden_{arch}.safetensors"


def digests_path(arch: str) -> Path:
    return FOLDER / f"golden_{arch}_digests.json"


def picture_path(arch: str, picture: str) -> Path:
    return FOLDER / f"image_{arch}_{picture}.png"


def load_golden(arch: str) -> Golden:
    """The golden data of "internlm2" or "phi3"."""
    with safe_open(tensors_path(arch), "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a handle, not a dict)
    spec = json.loads(metadata["spec"])
    for picture in spec["images"]:
        tensors[f"image/{picture}/source"] = np.asarray(Image.open(picture_path(arch, picture)))
    return Golden(
        arch=arch,
        spec=spec,
        tensors=tensors,
        digests=json.loads(digests_path(arch).read_text()),
        thinnings={name: Thinning(*value) for name, value in json.loads(metadata["thinnings"]).items()},
    )
