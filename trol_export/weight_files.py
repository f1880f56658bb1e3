"""One file of stored tensors: names, dtypes and shapes from its header, bytes in bounded chunks on request.

Two formats, one interface (`WeightFile`): safetensors, read by its published layout because the streaming export needs
byte ranges, which the safetensors library does not give; and torch's files, read without executing pickled code.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from trol_runtime.errors import CheckpointError
from trol_runtime.manifest import DTYPE_BYTES
from trol_runtime.one_line import one_line

# The safetensors format's own limit on its JSON header.
MAX_HEADER_BYTES = 100_000_000

FETCH_AGAIN = "fetch the file again"

_MOST_BYTES = 2**63 - 1


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says about one tensor; `dtype` is a name of `DTYPE_BYTES` such as "F16"."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class WeightFile(Protocol):
    """Headers of one file, and the bytes of its tensors."""

    path: Path
    tensors: dict[str, TensorInfo]

    def chunks(self, name: str, limit: int) -> Iterator[np.ndarray]:
        """A tensor's stored bytes, little endian, row-major: uint8 (n,) with n <= limit; not to be written to."""


class SafetensorsFile:
    """A .safetensors file; only its header is read at construction.

    Raises CheckpointError when the header is damaged or does not cover the file's data exactly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._size = file.seek(0, 2)
                file.seek(0)
                self._data_start, entries = self._read_header(file)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
        self.tensors: dict[str, TensorInfo] = {}
        self._begin: dict[str, int] = {}
        for name, entry in entries.items():
            self._add(name, entry)
        self._require_full_cover({name: self.tensors[name].nbytes for name in self.tensors})

    def chunks(self, name: str, limit: int) -> Iterator[np.ndarray]:
        remaining = self.tensors[name].nbytes
        # Read rather than mapped: a file that shrinks under us is a short read here, a killed process there.
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._data_start + self._begin[name])
            while remaining:
                chunk = np.empty(min(limit, remaining), np.uint8)
                _read_exactly(file, chunk, self.path)
                remaining -= chunk.size
                yield chunk

    def _read_header(self, file: Any) -> tuple[int, dict[str, Any]]:
        length = int.from_bytes(file.read(8), "little")
        if self._size < 8 or length > min(self._size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{self.path} is truncated or not a safetensors file: it has {self._size} bytes, "
                f"its first eight announce a header of {length}; {FETCH_AGAIN}"
            )
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is not JSON: {error}") from None
        if not isinstance(header, dict):
            raise self._damaged("its header is not a JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise self._damaged("its __metadata__ is not an object of texts")
        try:
            "".join((*header, *metadata, *metadata.values())).encode()
        except UnicodeEncodeError:
            raise self._damaged("its header holds halves of characters") from None
        return 8 + length, header

    def _add(self, name: str, entry: Any) -> None:
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise self._damaged(f"the entry of {name!r} lacks dtype, shape or data_offsets") from None
        if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
            raise self._damaged(f"{name!r} has the unknown dtype {dtype!r}")
        if not isinstance(shape, list) or not all(_is_count(n) for n in (*shape, begin, end)):
            raise self._damaged(f"{name!r} has shape {shape} and data_offsets [{begin}, {end}]: not counts")
        info = TensorInfo(name, dtype, tuple(shape))
        if math.prod(filter(None, shape)) * DTYPE_BYTES[dtype] > _MOST_BYTES:
            raise self._damaged(f"{name!r} has shape {shape}: more bytes than 64 bits can count")
        if end - begin != info.nbytes:
            raise self._damaged(
                f"{name!r} spans {end - begin} bytes, its shape {info.shape} in {dtype} needs {info.nbytes}"
            )
        self.tensors[name] = info
        self._begin[name] = begin

    def _require_full_cover(self, nbytes: dict[str, int]) -> None:
        """The format allows neither holes nor overlaps, and nothing behind the last tensor."""
        position = 0
        for name in sorted(nbytes, key=lambda n: (self._begin[n], nbytes[n])):
            if self._begin[name] != position:
                raise self._damaged(
                    f"{name!r} begins at byte {self._begin[name]}, the tensor before it ends at {position}"
                )
            position += nbytes[name]
        expected = self._data_start + position
        if expected != self._size:
            state = "truncated" if self._size < expected else "too long"
            raise CheckpointError(
                f"{self.path} is {state}: it has {self._size} bytes, its header promises {expected}; {FETCH_AGAIN}"
            )

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {one_line(what)}; {FETCH_AGAIN}")


class TorchFile:
    """A state dict saved by `torch.save`; tensors of zip files stay on disk, mapped.

    Only tensors and plain containers are unpickled (`weights_only`): a file that wants to run code is refused.
    Raises CheckpointError for such a file, a damaged one, or one that is no mapping of names to dense tensors.
    """

    def __init__(self, path: Path) -> None:
        import torch

        self.path = path
        names = {
            torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
            torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
            torch.bool: "BOOL",
        }  # fmt: skip
        self._state = self._load(torch)
        self.tensors: dict[str, TensorInfo] = {}
        for name, tensor in self._state.items():
            if tensor.layout != torch.strided or tensor.dtype not in names or tensor.is_meta:
                found = f"{tensor.layout} of {tensor.dtype}" + (" without values" if tensor.is_meta else "")
                raise CheckpointError(f"{path}: {one_line(repr(name))} is {found}, expected a dense tensor")
            # A view can repeat one stored value a trillion times.
            if tensor.nbytes > tensor.untyped_storage().nbytes():
                shown = f"{one_line(repr(name))} {list(tensor.shape)}"
                raise CheckpointError(f"{path}: {shown} has more values than are stored; {FETCH_AGAIN}")
            self.tensors[name] = TensorInfo(name, names[tensor.dtype], tuple(tensor.shape))

    def chunks(self, name: str, limit: int) -> Iterator[np.ndarray]:
        import torch

        data = self._state[name].detach().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
        for begin in range(0, data.size, limit):
            yield data[begin : begin + limit]

    def _load(self, torch: Any) -> dict[str, Any]:
        try:
            with self.path.open("rb") as file:
                # Files from before torch 1.6 are no zip archives and cannot be mapped.
                mapped = file.read(2) == b"PK"
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            raise CheckpointError(
                f"{self.path} is damaged or holds pickled code, which is never run here; "
                "expected a state dict of tensors as torch.save writes it"
            ) from None
        # torch raises anything from EOFError to IndexError on damaged bytes; all of it means the same to the user.
        except Exception as error:
            reason = one_line((str(error).splitlines() or [type(error).__name__])[0])
            size = self.path.stat().st_size if self.path.is_file() else 0
            raise CheckpointError(
                f"{self.path} ({size} bytes) cannot be read as a torch file: {reason}; {FETCH_AGAIN}"
            ) from None
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
        ):
            raise CheckpointError(f"{self.path} holds a {type(state).__name__}, expected a dict of names to tensors")
        return state


def _read_exactly(file: Any, chunk: np.ndarray, path: Path) -> None:
    view = chunk.data
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(f"{path} ended {len(view)} bytes early: it changed while being read; {FETCH_AGAIN}")
        view = view[count:]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has a {name}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result
