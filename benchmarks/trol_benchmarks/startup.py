"""How long a user waits: importing the runtime, and from the start of `trol-run` to the first token about a picture.

    python -m trol_benchmarks.startup engine.plan --image x.png --json startup.json

Every value is taken in a process of its own; the kinds take turns, so that all see the same machine. The files are in
the page cache after the first round, which is not counted. The engine needs its tokenizer.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from trol_benchmarks.measured_command import installed_command, open_process, require_success, run_measured
from trol_benchmarks.report import Row, add_json_option, report
from trol_benchmarks.samples import require_rounds, summary, turns
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import TrolError

_IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def main(argv: Sequence[str] | None) -> int:
    """Parse, measure, print; returns the exit code."""
    arguments = _parse(argv)
    run = [installed_command("trol-run"), str(arguments.engine), "--image", str(arguments.image)]
    kinds: dict[str, Callable[[], float]] = {
        "import trol_runtime": lambda: import_seconds("import trol_runtime"),
        "from trol_runtime import TroL": lambda: import_seconds("from trol_runtime import TroL"),
        "process start to first token": lambda: first_output_seconds([*run, "--max-new-tokens", "1"]),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for measure in kinds.values():
        measure()
    for kind in turns(tuple(kinds), arguments.rounds):
        taken[kind].append(kinds[kind]())
    record = {kind: summary(values) for kind, values in taken.items()}
    rows: list[Row] = [("seconds", "median", "min", "max")]
    rows += [(kind, *[f"{record[kind][key]:.3f}" for key in ("median", "min", "max")]) for kind in kinds]
    report("startup", {"seconds": record}, rows, arguments.json)
    return 0


def import_seconds(statement: str) -> float:
    """Seconds an import takes in a fresh interpreter, whose own start does not count."""
    return float(run_measured([sys.executable, "-c", _IMPORT.format(statement)]).stdout)


def first_output_seconds(command: Sequence[str]) -> float:
    """Seconds from starting `command` to the first byte on its stdout; raises TrolError when there is none or it fails.

    The answer is one token long: its text, or the end of line that follows it when it has none, is the first byte.
    """
    start = time.perf_counter()
    with open_process(command) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed = time.perf_counter() - start
        printed, complaints = process.communicate()
    require_success(command, process.returncode, printed + complaints)
    if not first:
        raise TrolError(f"{' '.join(command)} printed nothing, expected an answer of one token")
    return elapsed


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("startup", (("engine.plan --image x.png", "time to import and to the first token"),))
    parser.add_argument("engine", type=Path, metavar="engine.plan")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="a picture")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="processes of each kind (default: 9)")
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    require_rounds(arguments.rounds)
    return arguments


if __name__ == "__main__":
    run_script("startup", main)
