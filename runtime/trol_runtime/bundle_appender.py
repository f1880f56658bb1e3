"""engine.plan, the adding side: new entries, a new manifest and a new directory behind the end of a finished file.

    with BundleAppender("engine.plan") as appender:
        appender.add("plans/tensorrt/KEY/decode.plan", plan_bytes)
        appender.finish(replace(appender.manifest, plans=(*appender.manifest.plans, plan)))

The file is what it was until the new directory is complete, and again when the block is left without `finish`.
"""

from __future__ import annotations

import os
from types import TracebackType

from trol_runtime.bundle import Bundle, read_bundle
from trol_runtime.entry_writer import EntryWriter
from trol_runtime.errors import EngineFileError
from trol_runtime.file_tail import FileTail
from trol_runtime.manifest import Manifest


class BundleAppender:
    """Adds to the engine file `path`, which others may have open.

    manifest: what the file holds now, which nobody else changes within the block

    Raises EngineFileError as `Bundle.open` does, and TrolError when the file cannot be written, when its disk is full,
    or when another process is adding to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = FileTail(path)
        self._added: list[str] = []

    def __enter__(self) -> BundleAppender:
        self._file.__enter__()
        try:
            self._begin(read_bundle(self._file.path))
        except BaseException as error:
            self._file.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def _begin(self, bundle: Bundle) -> None:
        """Stand behind the directory that counts, which is what it was when the lock was taken."""
        self._file.require_same_name()
        self.manifest = bundle.manifest
        self._file.begin(bundle.end)
        self._entries = EntryWriter(self._file, bundle.records, bundle.manifest.sha256.entries)

    def require_free_bytes(self, needed: int) -> None:
        """Raise TrolError unless the disk has room for `needed` more bytes."""
        self._file.require_free_bytes(needed)

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Add a small entry; one of the same name in the file is superseded. The weights cannot be (ValueError)."""
        self._entries.add(name, data)
        self._added.append(name)

    def finish(self, manifest: Manifest) -> Bundle:
        """Add `manifest`, its hashes filled in, and the directory that makes it and the new entries count.

        Returns the file as it is read back, small entries and what was added verified; what cannot be read back is not
        kept (EngineFileError).
        """
        directory = self._entries.write_manifest(manifest, self.manifest.sha256.arena_blocks)
        # In this order on the disk, too: a directory never stands there before what it lists.
        self._file.sync()
        self._file.write(directory)
        self._file.sync()
        self._file.require_same_name()
        bundle = read_bundle(self._file.path)
        if bundle.end != self._file.tell():
            raise EngineFileError(f"{bundle.path}: what was added cannot be read back; run the command again")
        for name in self._added:
            bundle.read(name)
        self._file.commit()
        return bundle
