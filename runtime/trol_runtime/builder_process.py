"""What builds plans runs in a process of its own: a module of `trol_engines`, which the runtime does not import.

It needs packages that running does not. And what a builder allocates goes back to the system with its process, before
the weights want the memory.
"""

from __future__ import annotations

import subprocess
import sys

from trol_runtime.errors import TrolError
from trol_runtime.one_line import one_line

# `python -m module`, but for the current folder, which that puts first in the path: it may hold anybody's modules.
_RUN_MODULE = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
del sys.argv[0]
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
_SECONDS_TO_END = 5.0


def run_builder(module: str, *words: str) -> str:
    """Run a module with `words` as its arguments; what it printed to stdout. Its stderr is ours: how far it is.

    Raises TrolError with the line that it printed to stdout where it failed. It ends when this does.
    """
    command = [sys.executable, "-c", _RUN_MODULE, module, *words]
    # Without our stdin, which may hold a picture or questions.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
    if process.returncode != 0:
        raise TrolError(one_line(said) or f"{module} ended with {process.returncode}")
    return said


def _end(process: subprocess.Popen[str]) -> None:
    """A build that is interrupted between two of TensorRT's steps ends by itself; within one only force helps."""
    process.terminate()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
