"""What the tests of the export share: the command run in this process, and a checkpoint of their own to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from trol_export.export_command_line import main
from trol_runtime.command import run_command


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def trol_export(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run trol-export with these arguments."""

    def run(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        code = run_command("trol-export", main, [str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def micro(micro_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A micro internlm2 checkpoint that the test may change."""
    return Path(shutil.copytree(micro_checkpoint("internlm2"), tmp_path / "checkpoint"))
