"""engine.plan, the reading side: one stored zip that is verified when opened and then mapped in place.

`Bundle.open` vouches for the structure, the manifest (its SHA-256 is the archive comment) and every small entry. Plans,
of which a machine runs one, are verified as they are read; the arena, `weights.safetensors`, is checked for length
only; `Bundle.verify` reads it all. What is added to a file goes behind its end, with a directory of its own: the last
directory that is whole counts.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trol_runtime import zip_records
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.errors import EngineFileError, UsageError
from trol_runtime.manifest import DTYPE_BYTES, Manifest
from trol_runtime.manifest_check import require_possible
from trol_runtime.one_line import one_line
from trol_runtime.zip_records import Record

MANIFEST_ENTRY = "manifest.json"
ARENA_ENTRY = "weights.safetensors"
# What only one target runs lies under here.
PLANS_FOLDER = "plans/"

# The arena is hashed in blocks of this size, counted from the first byte of its entry (safetensors header included).
ARENA_BLOCK_BYTES = 16 << 20
# Data byte 0 of the arena stands at a multiple of this: a page on every system, and what direct reads to a GPU want.
ARENA_ALIGNMENT = 64 << 10
# Archive comment: the manifest's SHA-256 in hex.
COMMENT_BYTES = 64

_MAX_MANIFEST_BYTES = 64 << 20
_MAX_ARENA_HEADER_BYTES = 100_000_000  # safetensors' own limit
_COPY_BYTES = 4 << 20
# An addition is complete before the next one begins: of many directories, more than the last ones are a hostile file's.
_MOST_DIRECTORIES_TRIED = 8


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
    file_bytes: of the whole file
    records: of all entries, as the directory that counts lists them
    end: where that directory ends; what comes behind it is an addition that is not complete
    identity: what tells this file from one that takes its name later: device, inode, bytes, time of the last change
    """

    path: Path
    manifest: Manifest
    manifest_bytes: bytes
    entries: Mapping[str, Entry]
    arena_header_bytes: int
    file_bytes: int
    records: Sequence[Record]
    end: int
    identity: tuple[int, int, int, int]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and verify `path`; raises EngineFileError in one line: what is damaged, what to do.

        Warns (UserWarning) of an addition that is not complete, and reads the file as it was before.
        """
        bundle = read_bundle(path)
        torn_bytes = bundle.file_bytes - bundle.end
        if torn_bytes:
            warnings.warn(
                f"{bundle.path}: its last {torn_bytes:,} bytes are an addition that is not complete (interrupted, or "
                "still being written) and are passed over; add again what is missing",
                stacklevel=2,
            )
        return bundle

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
            raise EngineFileError(
                f"{self.path}: entry {name!r} is damaged, or changed since the file was opened; load it again, or copy "
                "or export it again"
            )
        return data

    def require_same_file(self) -> None:
        """Raise EngineFileError when another file has taken the name since `open`, for those who map it by name.

        A file to which something was added is the same: what was in it lies where it lay.
        """
        with _reading(self.path) as file:
            if _identity(file) != self.identity and not self._has_only_grown(file):
                raise EngineFileError("replaced while it was being loaded; load it again")

    def _has_only_grown(self, file: BinaryIO) -> bool:
        """Whether `file` is this one with more behind it: the comment, which stands for everything, is in its place."""
        device, inode, size, _ = _identity(file)
        file.seek(self.end - COMMENT_BYTES)
        comment = hashlib.sha256(self.manifest_bytes).hexdigest().encode()
        return (device, inode) == self.identity[:2] and size > self.end and file.read(COMMENT_BYTES) == comment

    def verify(self) -> None:
        """Compare plans and arena blocks with their SHA-256; raises EngineFileError naming the first damaged one."""
        plans = [name for name in self.entries if name.startswith(PLANS_FOLDER)]
        with _reading(self.path) as file:
            _require_whole(file, self.entries, self.manifest, plans)
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

        Raises UsageError for an unknown entry, and unless `overwrite` for an existing destination; EngineFileError for
        a damaged plan.
        """
        entry = self._entry(name)
        with (
            _reading(self.path) as source,
            AtomicFile(destination, overwrite=overwrite, needed_bytes=entry.size) as target,
        ):
            if name.startswith(PLANS_FOLDER):
                _require_whole(source, self.entries, self.manifest, [name])
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


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """`Bundle.open`, which warns of a torn tail, without the warning: for who is about to cut it off."""
    try:
        path = Path(path)
    except TypeError:
        raise UsageError(f"the engine file is a {type(path).__name__}, expected its path") from None
    if "\0" in str(path):
        raise UsageError(f"the path {one_line(path)} holds a zero byte; expected the path of an engine file")
    with _reading(path) as file:
        # Absolute: what is read later must not depend on the folder the process is in by then.
        return _verified(path.absolute(), file)


def _verified(path: Path, file: BinaryIO) -> Bundle:
    identity = _identity(file)
    _, _, file_bytes, _ = identity
    if file.read(4) != b"PK\3\4":
        raise EngineFileError("not an engine file (no zip header); expected the output of trol-export")
    contents = _last_whole(file, file_bytes)
    entries, manifest = contents.entries, Manifest.from_bytes(contents.manifest_bytes)
    require_possible(manifest)
    _require_described_entries(entries, manifest)
    small = [name for name in manifest.sha256.entries if not name.startswith(PLANS_FOLDER)]
    _require_whole(file, entries, manifest, small)
    arena_header_bytes = _read_arena_header_bytes(file, entries[ARENA_ENTRY])
    _require_tensors_inside_arena(manifest, entries[ARENA_ENTRY].size, arena_header_bytes)
    return Bundle(
        path=path,
        manifest=manifest,
        manifest_bytes=contents.manifest_bytes,
        entries=entries,
        arena_header_bytes=arena_header_bytes,
        file_bytes=file_bytes,
        records=contents.records,
        end=contents.end,
        identity=identity,
    )


@dataclass(frozen=True)
class _Contents:
    """What a directory that ends at byte `end` lists, and the manifest that its comment vouches for."""

    end: int
    records: Sequence[Record]
    entries: dict[str, Entry]
    manifest_bytes: bytes


def _last_whole(file: BinaryIO, file_bytes: int) -> _Contents:
    """Of the last directory that is complete and whose manifest verifies: at the file's end, or before a torn tail."""
    try:
        return _read_contents(file, file_bytes)
    except EngineFileError as error:
        for end in reversed(deque(zip_records.directory_ends(file, file_bytes), _MOST_DIRECTORIES_TRIED)):
            with suppress(EngineFileError):
                return _read_contents(file, end)
        raise error


def _read_contents(file: BinaryIO, end: int) -> _Contents:
    try:
        directory = zip_records.read_directory(file, end, COMMENT_BYTES)
        entries = _locate(file, directory)
    except EngineFileError as error:
        raise EngineFileError(f"damaged or cut short: {error}; copy or export the engine again") from None
    return _Contents(end, directory.records, entries, _read_manifest_bytes(file, entries, directory.comment))


def _identity(file: BinaryIO) -> tuple[int, int, int, int]:
    """Device, inode, bytes, time of the last change."""
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


def _require_whole(file: BinaryIO, entries: Mapping[str, Entry], manifest: Manifest, names: Iterable[str]) -> None:
    for name in names:
        if _sha256(file, entries[name]) != manifest.sha256.entries[name]:
            raise EngineFileError(f"entry {name!r} is damaged (SHA-256 differs); copy or export the engine again")


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
