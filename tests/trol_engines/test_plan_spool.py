"""A plan on the disk is the same bytes, under no name."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from trol_engines import plan_spool
from trol_engines.plan_spool import spool
from trol_runtime.errors import TrolError

PLAN = os.urandom(100_000)


def test_what_is_read_is_what_was_built(tmp_path: Path) -> None:
    first, second = spool(PLAN, tmp_path), spool(b"another", tmp_path)
    gc.collect()
    assert (bytes(first), bytes(second)) == (PLAN, b"another")
    assert first.nbytes == len(PLAN)


def test_nothing_is_left_by_a_process_that_is_killed(tmp_path: Path) -> None:
    kept = spool(PLAN, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert bytes(kept) == PLAN


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(dir: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plan_spool, "TemporaryFile", full)
    with pytest.raises(TrolError) as refused:
        spool(PLAN, tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: a plan of 100,000 bytes cannot be written here while others are built (No space left on device); "
        "free as much, or take an engine file on another disk"
    )
