"""A checkpoint directory in the official layout: what its headers say, and its weights one tensor at a time.

    config.json                                        required
    generation_config.json                             optional
    model.safetensors                                  or model.safetensors.index.json and its shards,
                                                       or pytorch_model.bin, or pytorch_model.bin.index.json and shards
    trol_gating.pt                                     "{layer}.weight" (1, H) and "{layer}.bias" (1,) per layer

What config.json means is `checkpoint_config`'s business; tokenizer files are read elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trol_export.weight_conversion import FLOAT_TYPES, FloatType, convert
from trol_export.weight_files import SafetensorsFile, TensorInfo, TorchFile, WeightFile
from trol_runtime.errors import CheckpointError
from trol_runtime.one_line import one_line

if TYPE_CHECKING:
    import torch

# Small enough to stay in the processor's cache between reading, converting, hashing and writing.
CHUNK_BYTES = 4 << 20

SAFETENSORS_FILE, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_FILE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
GATING_FILE = "trol_gating.pt"
GATE = ("trol_gating.weight", "trol_gating.bias")

# Tables that older model libraries stored; the official classes recompute them and ignore the stored ones.
DERIVED_SUFFIXES = (".position_ids", ".inv_freq", ".cos_cached", ".sin_cached")

# The deepest TroL has 32: a broken number must not have a model of a billion layers laid out.
MOST_LAYERS = 1000
SHOWN_DEVIATIONS = 5


@dataclass(frozen=True)
class Headers:
    """What a checkpoint says about itself before any weight is read, on disk or on a hub.

    source:  the directory or hub id, for messages
    tensors: every tensor of the weight files by name, and the gate in force as `trol_gating.weight` and `.bias`
    gating:  trol_gating.pt, None if it is missing or damaged
    """

    source: str
    config: dict[str, Any]
    generation: dict[str, Any]
    tensors: dict[str, TensorInfo]
    gating: WeightFile | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}


@dataclass(frozen=True)
class Checkpoint(Headers):
    """A checkpoint directory whose headers are read and whose tensors can be streamed."""

    directory: Path
    files: dict[str, StoredTensor]

    @classmethod
    def open(cls, directory: str | Path) -> Checkpoint:
        """Read the headers; raises one CheckpointError naming everything that is missing or damaged."""
        checkpoint, problems = cls.inspect(directory)
        if problems:
            raise CheckpointError("; ".join(problems))
        return checkpoint

    @classmethod
    def inspect(cls, directory: str | Path) -> tuple[Checkpoint, list[str]]:
        """Read what can be read, and one line per missing or damaged file.

        Raises CheckpointError if there is no such directory.
        """
        directory = Path(directory)
        if not directory.is_dir():
            found = "is a file" if directory.exists() else "does not exist"
            raise CheckpointError(
                f"{directory} {found}, expected the directory of a checkpoint: "
                f"config.json, {SAFETENSORS_FILE}, {GATING_FILE}"
            )
        problems: list[str] = []
        config, generation = read_configs(directory, problems)
        stored = _read_weights(directory, problems)
        gating = read_gating(directory, problems)
        if gating:
            stored.update({gate: StoredTensor(gating, name) for gate, name in effective_gate(gating.tensors).items()})
        checkpoint = cls(
            source=str(directory),
            config=config,
            generation=generation,
            tensors={name: replace(s.file.tensors[s.name], name=name) for name, s in stored.items()},
            gating=gating,
            directory=directory,
            files=stored,
        )
        return checkpoint, problems

    def stream(self, name: str, dtype: FloatType) -> Iterator[memoryview]:
        """The tensor's bytes as little-endian `dtype`, row-major, in chunks of at most 8 MiB that stay valid.

        fp32 and bf16 round to nearest even in fp16. Raises NumericError naming the tensor for NaN, infinity or what
        fp16 cannot hold.
        """
        stored = self.files[name]
        chunks = stored.file.chunks(stored.name, CHUNK_BYTES)
        return convert(chunks, self.tensors[name], dtype, str(stored.file.path))

    def numpy(self, name: str) -> np.ndarray:
        """The tensor as a new float32 array of its shape."""
        array = np.empty(self.tensors[name].shape, np.float32)
        target, position = array.reshape(-1).view(np.uint8), 0
        for chunk in self.stream(name, "F32"):
            target[position : position + len(chunk)] = chunk
            position += len(chunk)
        return array

    def torch(self, name: str) -> torch.Tensor:
        """The tensor as a new float32 torch tensor of its shape."""
        import torch

        return torch.from_numpy(self.numpy(name))


class StoredTensor(NamedTuple):
    """Where a tensor lies: the file, and its name there."""

    file: WeightFile
    name: str


def read_configs(directory: Path, problems: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and, where there is one, generation_config.json; {} for what cannot be read."""
    configs: list[dict[str, Any]] = []
    for name, read in (("config.json", read_json_object), ("generation_config.json", read_optional_json_object)):
        try:
            configs.append(read(directory / name))
        except CheckpointError as error:
            problems.append(str(error))
            configs.append({})
    return configs[0], configs[1]


def read_gating(directory: Path, problems: list[str]) -> WeightFile | None:
    """trol_gating.pt, or None if it is missing or damaged."""
    path = directory / GATING_FILE
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the gate is stored there, not among the other weights")
        return TorchFile(path)
    except CheckpointError as error:
        problems.append(str(error))
        return None


def _read_weights(directory: Path, problems: list[str]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    try:
        layout = weight_layout(directory)
    except CheckpointError as error:
        problems.append(str(error))
        return stored
    for file_name, promised in layout.items():
        try:
            file = _open_weight_file(directory / file_name)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for name in file.tensors:
            if name in stored:
                problems.append(f"{file.path}: tensor '{name}' is also in {stored[name].file.path.name}, expected once")
            stored[name] = StoredTensor(file, name)
        for name in sorted(promised - file.tensors.keys()):
            problems.append(
                one_line(f"{file.path} lacks tensor '{name}', which the index says it holds; fetch both again")
            )
    return stored


def _open_weight_file(path: Path) -> WeightFile:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the index names it; fetch it again")
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def weight_layout(directory: Path) -> dict[str, set[str]]:
    """The weight files by the official loader's order of preference, each with the tensors an index promises in it."""
    for single, index in ((SAFETENSORS_FILE, SAFETENSORS_INDEX), (TORCH_FILE, TORCH_INDEX)):
        if (directory / single).exists():
            return {single: set()}
        if (directory / index).exists():
            return _read_index(directory / index)
    raise CheckpointError(
        f"{directory} holds no weights: expected {SAFETENSORS_FILE}, {SAFETENSORS_INDEX} with its shards, "
        f"{TORCH_FILE} or {TORCH_INDEX} with its shards"
    )


def _read_index(index: Path) -> dict[str, set[str]]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map of tensor names to files; fetch it again")
    layout: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.isprintable() or len(shard) > 255:
            raise CheckpointError(
                f"{index} names the shard {one_line(repr(shard))}, expected a file name beside it; fetch it again"
            )
        layout.setdefault(shard, set()).add(name)
    return layout


def effective_gate(gating: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Which entries of trol_gating.pt are in force: `trol_gating.weight` and `.bias` by stored name.

    Upstream builds one gate and lists it once per layer; loading copies every entry into that one, in order, so
    the last layer's entry is the gate of all layers and the others have no effect.
    """
    numbers = [name.partition(".")[0] for name in gating]
    layers = [int(number) for number in numbers if number.isdecimal() and len(number) <= len(str(MOST_LAYERS))]
    if not layers:
        return {}
    names = (f"{max(layers)}.weight", f"{max(layers)}.bias")
    return {gate: name for gate, name in zip(GATE, names, strict=True) if name in gating}


def check_tensors(headers: Headers, expected: Mapping[str, tuple[int, ...]], dead: Set[str]) -> list[str]:
    """Every deviation of the stored tensors from `expected` (name -> shape), one line each; [] if there is none.

    dead: names that may be there but never have an effect
    """
    tensors = headers.tensors
    missing = [f"'{name}' is missing, expected {list(expected[name])}" for name in expected if name not in tensors]
    unexpected = [
        f"'{name}' {list(info.shape)} is unexpected: no part of this model reads it"
        for name, info in tensors.items()
        if name not in expected and name not in dead and not name.endswith(DERIVED_SUFFIXES)
    ]
    found = [(tensors[name], shape) for name, shape in expected.items() if name in tensors]
    misshapen = [f"'{t.name}' is {list(t.shape)}, expected {list(shape)}" for t, shape in found if t.shape != shape]
    mistyped = [f"'{t.name}' is {t.dtype}, expected F32, F16 or BF16" for t, _ in found if t.dtype not in FLOAT_TYPES]
    return [one_line(line, most=1000) for line in missing + unexpected + misshapen + mistyped + _check_gating(headers)]


def _check_gating(headers: Headers) -> list[str]:
    """The official loader wants exactly one weight and one bias per layer in trol_gating.pt."""
    layers = trunk_config(headers.config).get("num_hidden_layers")
    if headers.gating is None or not isinstance(layers, int):
        return []
    names = {f"{layer}.{part}" for layer in range(min(layers, MOST_LAYERS)) for part in ("weight", "bias")}
    missing, unexpected = sorted(names - headers.gating.tensors.keys()), sorted(headers.gating.tensors.keys() - names)
    if not missing and not unexpected:
        return []
    wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unexpected)} too"] * bool(unexpected)
    return [f"{GATING_FILE} {' and '.join(wrong)}, expected a weight and a bias for each of {layers} layers"]


def require_tensors(headers: Headers, expected: Mapping[str, tuple[int, ...]], dead: Set[str]) -> None:
    """Raise one CheckpointError, one line, if `check_tensors` finds anything."""
    require_none(check_tensors(headers, expected, dead))


def require_none(deviations: Sequence[str]) -> None:
    """Raise one CheckpointError, one line: the first deviations, how many more there are, how to list them all."""
    if deviations:
        shown = "; ".join(deviations[:SHOWN_DEVIATIONS])
        more = len(deviations) - SHOWN_DEVIATIONS
        raise CheckpointError(shown + (f"; and {more} more: list them with trol-export --check" if more > 0 else ""))


def trunk_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the language trunk: `llm_config` for phi3, all of it for internlm2."""
    trunk = config.get("llm_config", config)
    return trunk if isinstance(trunk, dict) else {}


def read_optional_json_object(path: Path) -> dict[str, Any]:
    """Like `read_json_object`, but {} if there is no such file."""
    return read_json_object(path) if path.exists() else {}


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object; CheckpointError if it is missing, unreadable or anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: expected a checkpoint's {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object; fetch it again")
    return value
