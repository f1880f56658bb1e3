"""manifest.json: what an engine file holds and what was measured of it. The one description every stage reads.

Keys are fixed by the format version; a reader ignores keys it does not know and refuses a newer version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.errors import EngineFileError
from trol_runtime.model_config import ModelConfig
from trol_runtime.prompt import PromptTemplate

FORMAT_VERSION = 1

_MOST_LEVELS = 32

# The form of a plan's graphs: as they are stored, or in opset 17 for TensorRT before 10.15 (see docs/format.md).
Opset = Literal["modern", "legacy"]

# Bytes per value of the dtypes safetensors names.
DTYPE_BYTES: Mapping[str, int] = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}


@dataclass(frozen=True)
class Limits:
    """What the graphs and plans were built for: tokens per row (pictures and answer included) and rows per batch."""

    max_seq: int
    max_batch: int


@dataclass(frozen=True)
class TensorEntry:
    """One weight in the arena.

    dtype: what the values mean. stored: how they lie in the arena (4-bit weights lie as U8). Both safetensors names.
    shape: of the stored tensor. offset: bytes from data byte 0 of the arena.
    """

    dtype: str
    stored: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the arena."""
        return math.prod(self.shape) * DTYPE_BYTES[self.stored]


@dataclass(frozen=True)
class GraphValue:
    """An input or output of a graph; an axis of `shape` is its size or the symbol that stands for it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphEntry:
    """The ONNX graph of one role: the bundle entry that holds it, and its interface."""

    entry: str
    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]


@dataclass(frozen=True)
class PlanEntry:
    """What one target runs: bundle entries, the roles they serve, and the versions they were built with.

    sm: compute capabilities of the GPUs the plan runs on, such as "8.7" or "8.6, 8.9, 12.0", None for a CPU.
    gpu: the one model of GPU the plan runs on, None for every one of these compute capabilities.
    platform: system and processor such as "linux-aarch64", None for any.
    limits: what the plan was built for, None for what the manifest says.
    weights: "shared" for a plan that takes them as inputs, from the arena; "embedded" for one with its own copy.
    mixer: what it was built as, "plugin" or "function".
    opset: "modern" for a plan that writes caches in place, "legacy" for one that gives new keys and values as rows.
    computes: per role and group of layers the types it computes in, read from what was built; empty where unknown.
    graphs: SHA-256 of the graphs the plan was built from.
    signature: of whoever built the plan, see plan_signature.
    """

    target: str
    key: str
    roles: tuple[str, ...]
    precision: str
    entries: tuple[str, ...]
    versions: dict[str, str]
    sm: str | None = None
    gpu: str | None = None
    platform: str | None = None
    limits: Limits | None = None
    weights: str | None = None
    mixer: str | None = None
    opset: Opset = "modern"
    computes: dict[str, dict[str, str]] = field(default_factory=dict)
    graphs: str | None = None
    signature: str | None = None


@dataclass(frozen=True)
class Hashes:
    """SHA-256 in hex, filled in by the bundle writer.

    entries: of every entry except manifest and arena. arena_blocks: of each 16 MiB of the arena's entry.
    """

    entries: dict[str, str] = field(default_factory=dict)
    arena_blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    producer: versions and sources, such as {"trol-export": "0.1.0", "checkpoint": ...}.
    prompt: None when exported without a tokenizer.
    generation, parity, fp16_range: JSON objects as the exporter wrote them.
    """

    producer: dict[str, Any]
    model: ModelConfig
    precision: Literal["fp32", "fp16"]
    limits: Limits
    tensors: dict[str, TensorEntry]
    graphs: dict[str, GraphEntry]
    plans: tuple[PlanEntry, ...] = ()
    prompt: PromptTemplate | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    fp16_range: dict[str, Any] = field(default_factory=dict)
    sha256: Hashes = field(default_factory=Hashes)
    format: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values, under the keys of the file format."""
        return asdict(self)

    def to_bytes(self) -> bytes:
        """The bytes of manifest.json: keys sorted, so that equal manifests are equal bytes."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text.encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read `to_bytes`'s result; raises EngineFileError naming what is missing, wrong or newer than this version."""
        try:
            values = json.loads(data)
            # Python reads more than `to_bytes` can have written: NaN, numbers beyond a float, halves of characters.
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
            if _is_deeper(values, _MOST_LEVELS):
                raise ValueError(f"more than {_MOST_LEVELS} levels of lists and objects")
        except (ValueError, RecursionError) as error:
            raise EngineFileError(f"manifest.json is not valid JSON ({error}); export the engine again") from None
        if not isinstance(values, dict):
            raise EngineFileError("manifest.json must hold an object; export the engine again")
        _require_known_format(values.get("format"))
        try:
            # Defaults are for those who build a manifest; a file holds every key.
            for key in fields(cls):
                if key.name not in values:
                    raise EngineFileError(f"key {key.name!r} is missing")
            return dataclass_from_json(cls, values)
        except EngineFileError as error:
            raise EngineFileError(f"manifest.json: {error}; export the engine again") from None


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in more than so many levels: what shows them goes down as deep."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(item, levels - 1) for item in items)


def _require_known_format(version: Any) -> None:
    if type(version) is not int or version < 1:
        raise EngineFileError(
            f"manifest.json: key 'format' must be 1 to {FORMAT_VERSION}, found {version!r}; export the engine again"
        )
    if version > FORMAT_VERSION:
        raise EngineFileError(
            f"format {version} is newer than this version reads (up to {FORMAT_VERSION}); "
            "upgrade: pip install -U trol-export"
        )
