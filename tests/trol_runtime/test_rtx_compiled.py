"""What RTX compiled is kept for the next start, whenever in a process it was compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trol_runtime.rtx_compiled import RtxCompiled

TRT = SimpleNamespace(__version__="1.7.1.116")
PLAN = b"a plan"


class Cache:
    """As IRuntimeCache; holds: what it gives out, None where there is no GPU any more."""

    def __init__(self, takes: bool = True) -> None:
        self.holds: bytes | None = b""
        self._takes = takes

    def deserialize(self, blob: bytes) -> bool:
        if self._takes:
            self.holds = bytes(blob)
        return self._takes

    def serialize(self) -> bytes | None:
        return self.holds


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "trol-export" / "rtx"


def kept(folder: Path) -> bytes:
    (file,) = folder.iterdir()
    return file.read_bytes()


def after_a_run(cache: Cache, holds: bytes = b"first") -> RtxCompiled:
    compiled = RtxCompiled(TRT, PLAN, cache)
    cache.holds = holds
    compiled.keep()
    return compiled


def test_what_the_first_run_compiled_is_written_then(folder: Path) -> None:
    compiled = after_a_run(Cache())
    assert kept(folder) == b"first"
    del compiled


def test_a_fork_that_ends_asks_rtx_for_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache()
    compiled = after_a_run(cache)
    cache.holds = b"of the fork"
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: -1)
        del compiled
    assert kept(folder) == b"first"


def test_what_later_runs_compiled_is_written_when_the_plan_goes(folder: Path) -> None:
    cache = Cache()
    compiled = after_a_run(cache)
    cache.holds = b"first and more"
    compiled.keep()
    assert kept(folder) == b"first"  # not after every run
    del compiled
    assert kept(folder) == b"first and more"


def test_a_plan_that_goes_with_the_process_is_written_at_its_end(folder: Path) -> None:
    script = """
from types import SimpleNamespace
from trol_runtime.rtx_compiled import RtxCompiled
cache = SimpleNamespace(serialize=lambda: b"first")
compiled = RtxCompiled(SimpleNamespace(__version__="1.7"), b"a plan", cache)
compiled.keep()
cache.serialize = lambda: b"first and more"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert kept(folder) == b"first and more"


def test_what_is_taken_from_the_last_start_is_extended(folder: Path) -> None:
    after_a_run(Cache(), b"first")
    cache = Cache()
    compiled = RtxCompiled(TRT, PLAN, cache)
    assert cache.holds == b"first"
    cache.holds = b"first and more"
    compiled.keep()
    assert kept(folder) == b"first and more"


def test_what_another_gpu_compiled_is_replaced(folder: Path) -> None:
    after_a_run(Cache(), b"of another GPU")
    after_a_run(Cache(takes=False), b"of this one")
    assert kept(folder) == b"of this one"


def test_what_is_there_already_is_not_written_again(folder: Path) -> None:
    after_a_run(Cache(), b"first")
    (file,) = folder.iterdir()
    before = file.stat().st_ino
    after_a_run(Cache(), b"first")
    assert file.stat().st_ino == before


def test_a_plan_that_never_ran_leaves_nothing(folder: Path) -> None:
    RtxCompiled(TRT, PLAN, Cache())
    assert not folder.exists()


def test_plans_and_versions_have_files_of_their_own(folder: Path) -> None:
    for version, plan in (("1.7", PLAN), ("1.8", PLAN), ("1.7", b"another plan")):
        RtxCompiled(SimpleNamespace(__version__=version), plan, Cache()).keep()
    assert len(list(folder.iterdir())) == 3


def test_without_a_gpu_at_the_end_what_was_written_stays(folder: Path) -> None:
    cache = Cache()
    compiled = after_a_run(cache)
    cache.holds = None
    del compiled
    assert kept(folder) == b"first"


def test_where_the_disk_refuses_the_run_goes_on(folder: Path) -> None:
    folder.parent.write_bytes(b"a file where a folder should be")
    after_a_run(Cache())
    assert folder.parent.is_file()
