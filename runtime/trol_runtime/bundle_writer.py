"""engine.plan, the writing side: entries are streamed to a temporary file, the manifest goes last, then the name.

    with BundleWriter("engine.plan") as writer:
        writer.add("graphs/prefill.onnx", graph_bytes)
        writer.add_arena(layout, chunks)
        unchecked = writer.write_provisional(manifest)      # a complete engine file, still under its temporary name
        parity = check(Bundle.open(unchecked))
        writer.finish(replace(manifest, parity=parity))

Leaving the block without `finish` leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

from trol_runtime import zip_records
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.bundle import ARENA_ALIGNMENT, ARENA_BLOCK_BYTES, ARENA_ENTRY
from trol_runtime.entry_writer import EntryWriter
from trol_runtime.manifest import Manifest
from trol_runtime.zip_records import Record

# Zeros in front of the arena, so that its data byte 0 is aligned.
PAD_ENTRY = "alignment.pad"

_PIECE_BYTES = 4 << 20


class ArenaShape(Protocol):
    """What the writer needs to know of a safetensors file before its tensors come."""

    @property
    def header(self) -> bytes:
        """Everything before data byte 0: the 8-byte length and the JSON."""

    @property
    def data_bytes(self) -> int:
        """Bytes from data byte 0 to the end."""


class BundleWriter:
    """Writes the engine file `path`; `require_free_bytes` compares its expected size with the disk before any work.

    Raises UsageError when `path` exists (unless `overwrite`) or lies in no directory, TrolError when the disk is full
    or refuses the file. Entry names are plain relative paths and unique (ValueError otherwise).
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self._file = AtomicFile(path, overwrite=overwrite)
        self._entries = EntryWriter(self._file)
        self._arena_blocks: tuple[str, ...] = ()
        # Where the provisional manifest begins, once there is one: everything from here on is replaced by `finish`.
        self._end_of_entries: int | None = None

    def __enter__(self) -> BundleWriter:
        try:
            self._file.__enter__()
        except BaseException as error:  # Ctrl-C when the file is there and the `with` block is not
            self._file.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def require_free_bytes(self, needed: int) -> None:
        """Raise TrolError unless the disk has room for `needed` more bytes."""
        self._file.require_free_bytes(needed)

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Append a small entry."""
        self._entries.add(name, data)

    def add_arena(self, layout: ArenaShape, chunks: Iterable[bytes | memoryview]) -> None:
        """Append `weights.safetensors`: the layout's header, then `chunks`, which hold its `data_bytes` bytes together.

        A chunk may be reused by its owner once the next one has been asked for.
        """
        size = len(layout.header) + layout.data_bytes
        self.require_free_bytes(size)
        self.add(PAD_ENTRY, self._padding(size, len(layout.header)))
        self._entries.begin(Record(ARENA_ENTRY, crc=0, size=size, header_offset=self._file.tell()))
        offset = self._file.tell()
        blocks = _BlockHashes()
        crc = 0
        # SHA-256 is the slowest part: a second thread hashes while this one writes (both release the GIL), in pieces
        # that are still in the cache when they are read again.
        with ThreadPoolExecutor(max_workers=1) as hashing_thread:
            for chunk in itertools.chain([layout.header], chunks):
                hashed = []
                for piece in _pieces(memoryview(chunk)):
                    hashed.append(hashing_thread.submit(blocks.update, piece))
                    self._file.write(piece)
                    crc = zlib.crc32(piece, crc)
                for piece_hashed in hashed:
                    piece_hashed.result()
        written = self._file.tell() - offset
        if written != size:
            raise ValueError(f"{ARENA_ENTRY}: the layout promises {size:,} bytes, {written:,} came")
        self._arena_blocks = blocks.hexdigests()
        self._entries.amend_crc(ARENA_ENTRY, crc)

    def write_provisional(self, manifest: Manifest) -> Path:
        """Complete the file under its temporary name with `manifest`, sync it and return that name, for `Bundle.open`.

        Close whatever maps the file before calling `finish`, which shortens it for a moment.
        """
        self._write_end(manifest)
        self._file.sync()
        return self._file.temporary_path

    def finish(self, manifest: Manifest) -> None:
        """Write `manifest`, its hashes filled in, in place of a provisional one, and give the file its final name."""
        self._write_end(manifest)
        self._file.commit()

    def _write_end(self, manifest: Manifest) -> None:
        """Write manifest and directory after the last entry, over those of an earlier call."""
        if self._end_of_entries is None:
            self._end_of_entries = self._file.tell()
        self._file.truncate(self._end_of_entries)
        self._file.write(self._entries.write_manifest(manifest, self._arena_blocks))

    def _padding(self, arena_size: int, header_size: int) -> bytes:
        """Content of the pad entry that puts data byte 0 of the arena, coming next, on its alignment."""
        headers = [
            zip_records.local_header(Record(name, 0, size, 0))
            for name, size in ((PAD_ENTRY, 0), (ARENA_ENTRY, arena_size))
        ]
        return bytes(-(self._file.tell() + sum(map(len, headers)) + header_size) % ARENA_ALIGNMENT)


def _pieces(chunk: memoryview) -> Iterator[memoryview]:
    """The chunk's bytes in order, _PIECE_BYTES at a time; nothing for an empty one, whatever its shape."""
    if chunk.nbytes:
        data = chunk.cast("B")
        for start in range(0, len(data), _PIECE_BYTES):
            yield data[start : start + _PIECE_BYTES]


class _BlockHashes:
    """SHA-256 of every ARENA_BLOCK_BYTES of a stream that comes in pieces of any size."""

    def __init__(self) -> None:
        self._finished: list[str] = []
        self._block = hashlib.sha256()
        self._room = ARENA_BLOCK_BYTES

    def update(self, data: memoryview) -> None:
        while len(data) >= self._room:
            self._block.update(data[: self._room])
            data = data[self._room :]
            self._finished.append(self._block.hexdigest())
            self._block, self._room = hashlib.sha256(), ARENA_BLOCK_BYTES
        self._block.update(data)
        self._room -= len(data)

    def hexdigests(self) -> tuple[str, ...]:
        last = () if self._room == ARENA_BLOCK_BYTES else (self._block.hexdigest(),)
        return (*self._finished, *last)
