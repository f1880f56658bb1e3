"""Plans in the cache directory: a folder each, told apart by engine, target and key; only whole records are seen.

What a damaged plan in the cache means for who looks for one is in test_plan_store.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from small_engine import write_small_engine
from small_plan import SMALL_CONTENTS, small_plan
from trol_runtime.bundle import Bundle
from trol_runtime.errors import UsageError
from trol_runtime.manifest import Manifest
from trol_runtime.plan_cache import CachedPlan, cache_plan, cached_plans
from trol_runtime.plan_choice import entry_of
from trol_runtime.plan_signature import signed


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trol-export"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Bundle.open(write_small_engine(tmp_path / "engine.plan")).manifest


def cached(manifest: Manifest, version: str = "10.3.0", target: str = "tensorrt") -> CachedPlan:
    plan = small_plan(manifest, version=version, target=target)
    contents = {entry_of(plan, role): data for role, data in SMALL_CONTENTS.items()}
    hashes = {entry: sha256(data).hexdigest() for entry, data in contents.items()}
    return cache_plan(manifest, signed(plan, hashes), hashes, contents)


def test_a_plan_lies_in_a_folder_of_its_own_that_people_can_find(manifest: Manifest, cache: Path) -> None:
    kept = cached(manifest)
    assert sorted(path.name for path in kept.folder.iterdir()) == ["decode.plan", "plan.json", "prefill.plan"]
    plans, engine, target, key = kept.folder.relative_to(cache).parts
    assert (plans, len(engine), target, key) == ("plans", 32, "tensorrt", kept.plan.key)
    assert (kept.folder / "decode.plan").read_bytes() == SMALL_CONTENTS["decode"]


def test_plans_are_found_by_their_target_the_last_kept_last(manifest: Manifest) -> None:
    kept = [cached(manifest, version) for version in ("10.9.0", "10.3.0", "11.4.1")]
    cached(manifest, target="tensorrt-rtx")
    for second, plan in enumerate(kept):
        os.utime(plan.folder / "plan.json", (second, second))
    assert cached_plans(manifest, "tensorrt") == kept
    assert all(plan.is_whole() for plan in kept)


def test_without_a_cache_there_are_no_plans_and_none_is_made(manifest: Manifest, cache: Path) -> None:
    assert cached_plans(manifest, "tensorrt") == []
    assert not cache.exists()


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"plan": {}, "sha256": {}}'])
def test_what_is_no_record_is_passed_over(manifest: Manifest, record: bytes) -> None:
    (cached(manifest).folder / "plan.json").write_bytes(record)
    assert cached_plans(manifest, "tensorrt") == []


def test_records_of_another_user_are_passed_over(manifest: Manifest, cache: Path) -> None:
    cached(manifest)
    (cache / "key").unlink()
    assert cached_plans(manifest, "tensorrt") == []


def test_a_folder_that_cannot_be_written_is_one_line(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached(manifest).folder
    (folder / "plan.json").unlink()
    (folder / "plan.json").mkdir()
    with pytest.raises(UsageError, match=r"plan.json: exists and is not a regular file; choose another name"):
        cached(manifest)
