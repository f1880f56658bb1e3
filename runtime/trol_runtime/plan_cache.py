"""Plans in the user's cache directory, for engine files that cannot be added to.

A plan lies in a folder of its own: a file per role, and `plan.json`, written last. What does not fit that record, or is
not signed by this user, is as good as not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from trol_runtime.atomic_file import write_whole
from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.errors import EngineFileError
from trol_runtime.manifest import Manifest, PlanEntry
from trol_runtime.plan_choice import graphs_sha256
from trol_runtime.plan_signature import built_here
from trol_runtime.user_cache import cache_directory, make_folder

_RECORD = "plan.json"
_MOST_RECORD_BYTES = 1 << 20
_READ_BYTES = 4 << 20
_ENGINE_DIGITS = 32  # enough of a SHA-256 that no two engines share a folder


@dataclass(frozen=True)
class _Record:
    """plan.json: a signed plan, and the SHA-256 of its contents by the name of their entry."""

    plan: PlanEntry
    sha256: dict[str, str]


@dataclass(frozen=True)
class CachedPlan:
    """A plan in a folder of the cache, signed by this user."""

    folder: Path
    plan: PlanEntry
    sha256: Mapping[str, str]

    def path(self, entry: str) -> Path:
        return self.folder / PurePosixPath(entry).name

    def is_whole(self) -> bool:
        """Whether every file has the bytes that were written; reads them piece by piece."""
        try:
            return all(_file_sha256(self.path(entry)) == self.sha256[entry] for entry in self.plan.entries)
        except OSError:
            return False

    def read(self, entry: str) -> bytes:
        """A file's bytes; raises EngineFileError if they are not those that were written."""
        try:
            data = self.path(entry).read_bytes()
        except OSError as error:
            raise EngineFileError(
                f"{self.path(entry)}: cannot be read ({error.strerror}); run the command again"
            ) from None
        if hashlib.sha256(data).hexdigest() != self.sha256[entry]:
            raise EngineFileError(f"{self.path(entry)}: damaged (SHA-256 differs); run the command again")
        return data


def cached_plans(manifest: Manifest, target: str) -> list[CachedPlan]:
    """The plans of an engine for a target, the last kept last; their files are not looked at."""
    records = (_engine_folder(manifest) / target).glob(f"*/{_RECORD}")
    plans = [_read_record(record) for record in sorted(records, key=lambda record: record.stat().st_mtime_ns)]
    return [plan for plan in plans if plan is not None]


def cache_plan(
    manifest: Manifest, plan: PlanEntry, sha256: Mapping[str, str], contents: Mapping[str, bytes | memoryview]
) -> CachedPlan:
    """Keep a signed plan and read it back; sha256 and contents by entry.

    Raises TrolError when the cache directory cannot be written.
    """
    cached = CachedPlan(_engine_folder(manifest) / plan.target / plan.key, plan, sha256)
    make_folder(cached.folder)
    for entry, data in contents.items():
        write_whole(cached.path(entry), data, overwrite=True, option="XDG_CACHE_HOME")
    record = json.dumps(asdict(_Record(plan, dict(sha256)))).encode("ascii")
    write_whole(cached.folder / _RECORD, record, overwrite=True, option="XDG_CACHE_HOME")
    for entry in contents:
        cached.read(entry)
    return cached


def _engine_folder(manifest: Manifest) -> Path:
    """The folder of one engine, whatever its file is called and whatever is added to it."""
    graphs_and_weights = "".join([graphs_sha256(manifest), *manifest.sha256.arena_blocks])
    engine = hashlib.sha256(graphs_and_weights.encode("ascii")).hexdigest()
    return cache_directory() / "plans" / engine[:_ENGINE_DIGITS]


def _read_record(path: Path) -> CachedPlan | None:
    """What `cache_plan` wrote; None for anything else: damaged, of another version, of another user."""
    try:
        with open(path, "rb") as file:
            record = dataclass_from_json(_Record, json.loads(file.read(_MOST_RECORD_BYTES)))
    except (OSError, ValueError, RecursionError, EngineFileError):
        return None
    return CachedPlan(path.parent, record.plan, record.sha256) if built_here(record.plan, record.sha256) else None


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
