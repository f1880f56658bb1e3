"""Run a command to its end and say what it printed, how long it took and how much memory it held."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trol_benchmarks.resident_memory import Peak, peak_of
from trol_runtime.errors import TrolError, UsageError


@dataclass(frozen=True)
class Measured:
    """seconds: from the start of the process to its end."""

    stdout: str
    stderr: str
    seconds: float
    peak: Peak


def run_measured(command: Sequence[str]) -> Measured:
    """Run `command`; raises UsageError when there is no such program, TrolError with its last line when it fails."""
    start = time.perf_counter()
    process = open_process(command)
    with peak_of(process.pid) as peak:
        stdout, stderr = process.communicate()
    elapsed = time.perf_counter() - start
    require_success(command, process.returncode, stdout + stderr)
    return Measured(stdout, stderr, elapsed, peak)


def open_process(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start `command` with pipes for what it prints; raises UsageError when there is no such program."""
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]} ({error.strerror}); give the path of a program") from error


def require_success(command: Sequence[str], returncode: int, printed: str) -> None:
    """Raise TrolError with the last line the command printed unless it ended with 0."""
    if returncode != 0:
        last = (printed.strip().splitlines() or ["nothing"])[-1]
        raise TrolError(f"{' '.join(command)} ended with code {returncode}, expected 0; its last line: {last}")


def installed_command(name: str) -> str:
    """The path of a command of this project, beside the running interpreter or on PATH; raises UsageError for none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise UsageError(f"{name} is not installed; run: pip install 'trol-export[export,cpu]'")
    return found
