"""Builds the plans of this machine from the graphs in an engine file and keeps them: what `trol-run` does without any.

    python -m trol_engines.build_here tensorrt engine.plan

They are kept in the file or, where that cannot be added to, in the user's cache directory. Progress goes to stderr, and
what went wrong to stdout: the program that started this one says it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from trol_engines.tensorrt_package import TARGETS
from trol_runtime.bundle import Bundle
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import TrolError
from trol_runtime.machine import describe_machine
from trol_runtime.target_support import require_buildable

NAME = "python -m trol_engines.build_here"
EXAMPLES = (("tensorrt engine.plan", "build what trol-run --backend tensorrt lacks"),)


def main(argv: Sequence[str] | None) -> int:
    """Build and keep; returns the exit code."""
    parser = CommandParser(NAME, EXAMPLES)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("engine", metavar="engine.plan")
    arguments = parser.parse_args(argv)
    try:
        _build(arguments.target, Path(arguments.engine))
    except TrolError as error:
        print(error)
        return error.exit_code
    return 0


def _build(target: str, path: Path) -> None:
    # Before what it asks for is imported.
    require_buildable(target, describe_machine(), precision=Bundle.open(path).manifest.precision)
    from trol_engines.add_plans import keep_plans

    print(f"kept in {keep_plans(path, target)}", file=sys.stderr)


if __name__ == "__main__":
    run_script(NAME, main)
