"""engine.plan, the reading side: one stored zip that is verified when opened and then mapped in place.

`Bundle.open` vouches for the structure, the manifest (its SHA-256 is the archive comment) and every small entry. The
arena, `weights.safetensors`, is checked for length only; `Bundle.verify` reads it all. The last directory counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trol_runtime import zip_records
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.errors import EngineFileError, UsageError
from trol_runtime.manifest import DTYPE_BYTES, Manifest
from trol_runtime.manifest_check import require_possible
from trol_runtime.one_line import one_line

MANIFEST_ENTRY = "manifest.json"
ARENA_ENTRY = "weights.safetensors"

# The arena is hashed in blocks of this size, counted from the first byte of its entry (safetensors header included).
ARENA_BLOCK_BYTES = 16 << 20
# Data byte 0 of the arena stands at a multiple of this: a page on every system, and what direct reads to a GPU want.
ARENA_ALIGNMENT = 64 << 10
# Archive comment: the manifest's SHA-256 in hex.
COMMENT_BYTES = 64

_MAX_MANIFEST_BYTES = 64 << 20
_MAX_ARENA_HEADER_BYTES = 100_000_000  # safetensors' own limit
_COPY_BYTES = 4 << 20


@dataclass(frozen=True)
class Entry:
    """A stored entry: its data is bytes [offset, offset + size) of the file."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Bundle:
    """An engine file whose structure, manifest and small entries have been verified.

    arena_header_bytes: length of the safetensors header, its 8-byte length included: data byte 0 comes right after it.
    identity: what tells this file from one that takes its name later
    """

    path: Path
    manifest: Manifest
    manifest_bytes: bytes
    entries: Mapping[str, Entry]
    arena_header_bytes: int
    file_bytes: int
    identity: tuple[int, ...]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and verify `path`; raises EngineFileError in one line: what is damaged, what to do."""
        try:
            path = Path(path)
        except TypeError:
            raise UsageError(f"the engine file is a {type(path).__name__}, expected its path") from None
        if "\0" in str(path):
            raise UsageError(f"the path {one_line(path)} holds a zero byte; expected the path of an engine file")
        with _reading(path) as file:
            # Absolute: what is read later must not depend on the folder the process is in by then.
            return _read_bundle(path.absolute(), file)

    @property
    def arena_offset(self) -> int:
        """Absolute file offset of data byte 0 of the arena."""
        return self.entries[ARENA_ENTRY].offset + self.arena_header_bytes

    def read(self, name: str) -> bytes:
        """The bytes of a small entry, verified; the arena is mapped, never read whole (ValueError)."""
        if name == ARENA_ENTRY:
            raise ValueError(f"{ARENA_ENTRY} is too large to read; map it at arena_offset")
        if name == MANIFEST_ENTRY:
            return self.manifest_bytes
        entry = self._entry(name)
        with _reading(self.path) as file:
            data = b"".join(_chunks(file, entry))
        if hashlib.sha256(data).hexdigest() != self.manifest.sha256.entries[name]:
            raise EngineFileError(f"{self.path}: entry {name!r} changed since the file was opened; load it again")
        return data

    def require_same_file(self) -> None:
        """Raise EngineFileError when another file has taken the name since `open`, for those who map it by name."""
        with _reading(self.path) as file:
            if _identity(file) != self.identity:
                raise EngineFileError("replaced while it was being loaded; load it again")

    def verify(self) -> None:
        """Compare every arena block with its SHA-256; raises EngineFileError naming the first damaged block."""
        expected = self.manifest.sha256.arena_blocks
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(self._block_sha256, range(len(expected))))
        damaged = [block for block, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]]
        if damaged:
            raise EngineFileError(
                f"{self.path}: {len(damaged)} of {len(expected)} blocks of {ARENA_ENTRY} damaged, "
                f"first block {damaged[0]} ({self._tensors_in_block(damaged[0])}); copy or export the engine again"
            )

    def extract(self, name: str, destination: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Copy an entry's bytes to the file `destination`, which appears complete or not at all.

        Raises UsageError for an unknown entry, and unless `overwrite` for an existing destination.
        """
        entry = self._entry(name)
        with (
            _reading(self.path) as source,
            AtomicFile(destination, overwrite=overwrite, needed_bytes=entry.size) as target,
        ):
            for chunk in _chunks(source, entry):
                target.write(chunk)
            target.commit()

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise UsageError(f"{self.path}: no entry {name!r}; it holds {', '.join(self.entries)}")
        return self.entries[name]

    def _block_sha256(self, block: int) -> str:
        arena = self.entries[ARENA_ENTRY]
        start = block * ARENA_BLOCK_BYTES
        with _reading(self.path) as file:
            part = Entry(arena.name, arena.offset + start, min(ARENA_BLOCK_BYTES, arena.size - start))
            return _sha256(file, part)

    def _tensors_in_block(self, block: int) -> str:
        start = block * ARENA_BLOCK_BYTES - self.arena_header_bytes
        end = start + ARENA_BLOCK_BYTES
        tensors = sorted(self.manifest.tensors.items(), key=lambda item: item[1].offset)
        names = ["its header"] if start < 0 else []
        names += [name for name, tensor in tensors if tensor.offset < end and tensor.offset + tensor.nbytes > start]
        shown = ", ".join(names[:3]) or "padding"
        return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """The open file; what goes wrong with it becomes an EngineFileError that begins with its path."""
    try:
        # A pipe would block, a device never end.
        if path.exists() and not path.is_file():
            raise EngineFileError("not a file; expected the output of trol-export")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise EngineFileError(
            f"{path}: no such file; make one with: trol-export --size 1.8b --precision fp16 -o {path}"
        ) from None
    except OSError as error:
        raise EngineFileError(f"{path}: cannot be read ({error.strerror}); expected an engine file") from None
    except EngineFileError as error:
        raise EngineFileError(f"{path}: {one_line(error)}") from None


def _read_bundle(path: Path, file: BinaryIO) -> Bundle:
    file_bytes = os.fstat(file.fileno()).st_size
    if file.read(4) != b"PK\3\4":
        raise EngineFileError("not an engine file (no zip header); expected the output of trol-export")
    try:
        directory = zip_records.read_directory(file, file_bytes, COMMENT_BYTES)
        entries = _locate(file, directory)
    except EngineFileError as error:
        raise EngineFileError(f"damaged or cut short: {error}; copy or export the engine again") from None
    manifest_bytes = _read_manifest_bytes(file, entries, directory.comment)
    manifest = Manifest.from_bytes(manifest_bytes)
    require_possible(manifest)
    _require_described_entries(entries, manifest)
    for name, sha256 in manifest.sha256.entries.items():
        if _sha256(file, entries[name]) != sha256:
            raise EngineFileError(f"entry {name!r} is damaged (SHA-256 differs); copy or export the engine again")
    arena_header_bytes = _read_arena_header_bytes(file, entries[ARENA_ENTRY])
    _require_tensors_inside_arena(manifest, entries[ARENA_ENTRY].size, arena_header_bytes)
    return Bundle(path, manifest, manifest_bytes, entries, arena_header_bytes, file_bytes, _identity(file))


def _identity(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _locate(file: BinaryIO, directory: zip_records.Directory) -> dict[str, Entry]:
    """The data range of every record, in file order: names are unique, ranges (headers included) do not overlap."""
    entries: dict[str, Entry] = {}
    end_of_previous = 0
    for record in sorted(directory.records, key=lambda record: record.header_offset):
        if record.name in entries:
            raise EngineFileError(f"entry {record.name!r} appears twice")
        if not end_of_previous <= record.header_offset < directory.offset:
            raise EngineFileError(f"entry {record.name!r} overlaps another part of the file")
        entry = Entry(record.name, zip_records.data_offset(file, record), record.size)
        end_of_previous = entry.offset + entry.size
        if end_of_previous > directory.offset:
            raise EngineFileError(f"entry {record.name!r} overlaps another part of the file")
        entries[record.name] = entry
    return entries


def _read_manifest_bytes(file: BinaryIO, entries: Mapping[str, Entry], comment: bytes) -> bytes:
    entry = entries.get(MANIFEST_ENTRY)
    if entry is None:
        raise EngineFileError(f"not an engine file (no {MANIFEST_ENTRY}); expected the output of trol-export")
    if entry.size > _MAX_MANIFEST_BYTES:
        raise EngineFileError(
            f"{MANIFEST_ENTRY} has {entry.size:,} bytes, at most {_MAX_MANIFEST_BYTES:,} are possible"
        )
    data = b"".join(_chunks(file, entry))
    if hashlib.sha256(data).hexdigest().encode() != comment:
        raise EngineFileError(f"{MANIFEST_ENTRY} is damaged (SHA-256 differs); copy or export the engine again")
    return data


def _require_described_entries(entries: Mapping[str, Entry], manifest: Manifest) -> None:
    """Every entry is one the manifest vouches for, and every entry it names is there."""
    hashed = set(manifest.sha256.entries) | {MANIFEST_ENTRY, ARENA_ENTRY}
    used = {graph.entry for graph in manifest.graphs.values()}.union(*(plan.entries for plan in manifest.plans))
    missing = (hashed | used) - set(entries)
    if missing:
        raise EngineFileError(f"entry {min(missing)!r} is missing; copy or export the engine again")
    unknown = set(entries) - hashed
    if unknown:
        raise EngineFileError(f"entry {min(unknown)!r} is not in the manifest; copy or export the engine again")


def _read_arena_header_bytes(file: BinaryIO, arena: Entry) -> int:
    """Length of the safetensors header at the start of the arena, its own 8-byte length included."""
    file.seek(arena.offset)
    header_bytes = 8 + int.from_bytes(file.read(8), "little")
    if header_bytes > min(arena.size, _MAX_ARENA_HEADER_BYTES) or (arena.offset + header_bytes) % ARENA_ALIGNMENT:
        raise EngineFileError(f"the header of {ARENA_ENTRY} is damaged; copy or export the engine again")
    return header_bytes


def _require_tensors_inside_arena(manifest: Manifest, arena_bytes: int, header_bytes: int) -> None:
    """Tensors lie within the arena's data, and there is one hash per block of the arena."""
    for name, tensor in manifest.tensors.items():
        if tensor.stored not in DTYPE_BYTES or any(size < 0 for size in tensor.shape):
            raise EngineFileError(
                f"tensor {name!r} has dtype {tensor.stored!r}, shape {tensor.shape}; export the engine again"
            )
        if tensor.offset < 0 or tensor.offset + tensor.nbytes > arena_bytes - header_bytes:
            raise EngineFileError(f"tensor {name!r} ends outside {ARENA_ENTRY}; copy or export the engine again")
    blocks = -(-arena_bytes // ARENA_BLOCK_BYTES)
    if len(manifest.sha256.arena_blocks) != blocks:
        raise EngineFileError(
            f"{ARENA_ENTRY} has {blocks} blocks, the manifest describes {len(manifest.sha256.arena_blocks)}; "
            "copy or export the engine again"
        )


def _sha256(file: BinaryIO, entry: Entry) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(file, entry):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The entry's data in bounded pieces."""
    file.seek(entry.offset)
    rest = entry.size
    while rest:
        chunk = file.read(min(rest, _COPY_BYTES))
        if not chunk:
            raise EngineFileError(f"entry {entry.name!r} is cut short; copy or export the engine again")
        yield chunk
        rest -= len(chunk)
