from __future__ import annotations

import sys

import pytest

from trol_benchmarks.measured_command import installed_command, run_measured
from trol_runtime.errors import TrolError, UsageError


def test_what_a_command_prints_is_kept_apart_by_stream() -> None:
    measured = run_measured([sys.executable, "-c", "import sys; print('out'); print('progress', file=sys.stderr)"])
    assert (measured.stdout, measured.stderr) == ("out\n", "progress\n")
    assert measured.seconds > 0


def test_the_peak_of_a_command_is_sampled_while_it_runs() -> None:
    allocate = "import time; block = b'x' * (64 << 20); time.sleep(0.5)"
    measured = run_measured([sys.executable, "-c", allocate])
    assert measured.peak.taken.anonymous >= 64 * 2**20


def test_a_command_that_fails_is_reported_with_its_last_line() -> None:
    with pytest.raises(TrolError, match=r"ended with code 3, expected 0; its last line: no such checkpoint$"):
        run_measured([sys.executable, "-c", "import sys; print('no such checkpoint', file=sys.stderr); sys.exit(3)"])


def test_a_program_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"cannot run ./no-such-program \(No such file or directory\); give the path"):
        run_measured(["./no-such-program"])


def test_a_command_of_this_project_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(UsageError, match=r"trol-nothing is not installed; run: pip install 'trol-export\["):
        installed_command("trol-nothing")
