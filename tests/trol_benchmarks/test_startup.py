from __future__ import annotations

import sys

import pytest

from trol_benchmarks.startup import first_output_seconds, import_seconds
from trol_runtime.errors import TrolError


def test_an_import_is_timed_in_an_interpreter_that_has_not_seen_it() -> None:
    assert import_seconds("import trol_runtime; assert 'numpy' not in __import__('sys').modules") > 0


def test_the_clock_stops_at_the_first_byte_and_not_at_the_end() -> None:
    script = "import time; print('a', flush=True); time.sleep(1.0); print('b')"
    assert 0 < first_output_seconds([sys.executable, "-c", script]) < 60


def test_a_command_that_prints_nothing_is_reported() -> None:
    with pytest.raises(TrolError, match="printed nothing, expected an answer of one token"):
        first_output_seconds([sys.executable, "-c", ""])


def test_a_command_that_fails_is_reported_with_its_last_line() -> None:
    with pytest.raises(TrolError, match=r"its last line: trol-run: engine\.plan: no such file"):
        first_output_seconds([sys.executable, "-c", "import sys; sys.exit('trol-run: engine.plan: no such file')"])
