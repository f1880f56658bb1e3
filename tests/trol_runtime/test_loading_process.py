"""An engine is used where it was loaded, and says so in a fork of that process."""

from __future__ import annotations

import os

import pytest

from trol_runtime.errors import TrolError
from trol_runtime.loading_process import LoadingProcess


def test_the_process_that_loaded_may_go_on() -> None:
    LoadingProcess().require()


def test_a_fork_is_told_both_processes_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    process, parent = LoadingProcess(), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(TrolError) as refused:
        process.require()
    assert str(refused.value) == (
        f"the engine was loaded in process {parent} and is used in its fork {parent + 1}; load it after forking, or "
        "start processes with multiprocessing's spawn"
    )
