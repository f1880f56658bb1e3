"""What builds plans runs in a process of its own: a module of `trol_engines`, which the runtime does not import.

It needs packages that running does not. And what a builder allocates goes back to the system with its process, before
the weights want the memory.
"""

from __future__ import annotations

import subprocess
import sys

from trol_runtime.errors import TrolError
from trol_runtime.one_line import one_line


def run_builder(module: str, *words: str) -> str:
    """Run `python -m module words`; what it printed to stdout. Its stderr is ours, and shows how far it is.

    Raises TrolError with the line that it printed to stdout where it failed.
    """
    # Without our stdin, which may hold a picture or questions.
    with subprocess.Popen(
        [sys.executable, "-m", module, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        said, _ = process.communicate()
    if process.returncode != 0:
        raise TrolError(one_line(said) or f"{module} ended with {process.returncode}")
    return said
