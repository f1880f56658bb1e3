"""trol-bench: how good an engine is, on a fixed set of questions that every engine is asked."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trol_runtime.backends import BACKENDS, CPU
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import UsageError

if TYPE_CHECKING:
    from trol_benchmarks.world.test_set import AskedQuestion, QuestionSet

ACCURACY_EXAMPLES = (
    ("engine.plan", "the share of right answers to 1,000 questions, family by family"),
    ("engine.plan --against other.plan", "and whether another engine answers differently"),
    ("engine.plan -o record.json", "keep every answer"),
    ("engine.plan --against record.json", "compare with an engine that is no longer there"),
    ("engine.plan --backend cuda --against engine.plan", "the same engine on a GPU and on the CPU"),
    ("engine.plan --limit 100", "a first look in a tenth of the time"),
)
EXAMPLES = tuple((f"accuracy {arguments}", meaning) for arguments, meaning in ACCURACY_EXAMPLES)


def script() -> NoReturn:
    """Console entry point."""
    run_script("trol-bench", main)


def main(argv: Sequence[str] | None) -> int:
    """Parse, ask, print; returns the exit code."""
    arguments = _parse(argv)
    if arguments.command is None:
        _parser().print_help(sys.stderr)
        return UsageError.exit_code
    measure_accuracy(arguments)
    return 0


def measure_accuracy(arguments: argparse.Namespace) -> None:
    """`trol-bench accuracy`: the report to stdout, then the record of -o."""
    from trol_benchmarks.accuracy import ask_engine, open_engine, require_askable
    from trol_benchmarks.accuracy_record import is_record, read_record, write_record
    from trol_benchmarks.accuracy_report import accuracy_report, as_text
    from trol_benchmarks.world.test_set import RELEASED, read_question_set
    from trol_runtime.atomic_file import AtomicFile

    # What can be refused is refused before minutes of answering.
    record = None if arguments.output is None else AtomicFile(arguments.output)
    question_set = read_question_set(RELEASED if arguments.set is None else Path(arguments.set))
    asked = _first(arguments.limit, question_set)
    engine = open_engine(arguments.engine)
    against = other_engine = None
    if arguments.against is not None and is_record(arguments.against):
        against = read_record(arguments.against, question_set, asked)
    elif arguments.against is not None:
        other_engine = open_engine(arguments.against)
    if other_engine is not None:
        require_askable(other_engine, question_set, asked, arguments.threads)

    answers = ask_engine(engine, question_set, asked, arguments.threads, arguments.backend)
    try:
        if other_engine is not None:
            against = ask_engine(other_engine, question_set, asked, arguments.threads)
    finally:  # neither a second engine that fails nor a pager that is left early costs the answers of the first
        report = accuracy_report(question_set, asked, answers, against)
        try:
            print(json.dumps(report) if arguments.json else as_text(report), flush=True)
        finally:
            if record is not None:
                write_record(record, report, asked, answers)


def _first(limit: int | None, question_set: QuestionSet) -> tuple[AskedQuestion, ...]:
    most = len(question_set.questions)
    if limit is not None and not 1 <= limit <= most:
        raise UsageError(f"--limit is {limit}, expected 1 to {most}, the questions of the test set")
    return question_set.questions[:limit]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = _parser().parse_args(argv)
    if arguments.command is not None and arguments.threads is not None and arguments.backend != CPU:
        raise UsageError(f"--threads is for the CPU, and --backend is {arguments.backend}; leave one of them out")
    return arguments


def _parser() -> CommandParser:
    parser = CommandParser("trol-bench", EXAMPLES)
    commands = parser.add_subparsers(dest="command", prog="trol-bench", metavar="COMMAND", title="commands")
    accuracy = commands.add_parser(
        "accuracy", examples=ACCURACY_EXAMPLES, help="how many questions about drawn pictures an engine answers right"
    )
    accuracy.add_argument("engine", metavar="engine.plan", help="engine file written by trol-export")
    accuracy.add_argument(
        "--against", metavar="FILE", help="compare with another engine, on the CPU, or with the record of one"
    )
    accuracy.add_argument("--backend", choices=BACKENDS, default=CPU, help=f"what runs engine.plan (default: {CPU})")
    accuracy.add_argument(
        "-o", "--output", metavar="FILE", help="also write a record, the report with every answer, as JSON"
    )
    accuracy.add_argument("--json", action="store_true", help="print the report as JSON")
    accuracy.add_argument("--limit", type=int, metavar="N", help="ask only the first N questions (default: all)")
    accuracy.add_argument("--set", metavar="FILE", help="another test set (default: the one of this release)")
    accuracy.add_argument("--threads", type=int, metavar="N", help="cores to use (default: all physical ones)")
    return parser
