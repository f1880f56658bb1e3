r"""Prefill and decode times of an engine against any other program that runs the same model, in one interleaved run.

    python -m trol_benchmarks.against engine.plan --threads 2 --rounds 3 \
        --baseline 'python other_program.py CHECKPOINT fp32 1 {threads}' \
        --pattern 'prefill (?P<prefill_s>[\d.]+) s, decode (?P<decode_ms>[\d.]+) ms'

The baseline is a command whose output is searched for the pattern. Named groups say what was found and its unit:
`prefill_s` or `prefill_ms`, `decode_s` or `decode_ms` (per token); of several matches the last counts. It has to run
one prompt of the same shape: --crops pictures, --text-tokens, --new-tokens. `{threads}` in the command is replaced.

Each round runs both once, in processes of their own, taking turns in going first. Neither side's loading is part of its
times; resident memory is that of the whole process, loading included.
"""

from __future__ import annotations

import re
import shlex
import statistics
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trol_benchmarks.engine_run import add_run_options, check_run_options, run_options
from trol_benchmarks.measured_command import run_measured
from trol_benchmarks.memory import bound_rows, measured_engine_run, memory_record, resident_rows
from trol_benchmarks.memory_bound import memory_bound
from trol_benchmarks.report import Row, add_json_option, milliseconds, report, seconds
from trol_benchmarks.resident_memory import Peak
from trol_benchmarks.samples import ratio, require_rounds, summary, turns
from trol_runtime.bundle import Bundle
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import TrolError, UsageError

_EXAMPLE = ("engine.plan --threads 2 --baseline 'CMD {threads}' --pattern REGEX", "an engine beside any other program")
_UNIT_SECONDS = {"s": 1.0, "ms": 1e-3}


@dataclass(frozen=True)
class Times:
    """Seconds: of the prompt, and of one new token (the median over the steps of a run)."""

    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Round:
    """What one side did in one round."""

    times: Times
    peak: Peak


def main(argv: Sequence[str] | None) -> int:
    """Parse, measure, print; returns the exit code."""
    arguments = _parse(argv)
    pattern = times_pattern(arguments.pattern)
    baseline = command_words(arguments.baseline.replace("{threads}", str(arguments.threads)))
    manifest = Bundle.open(arguments.engine).manifest
    rounds: dict[str, list[Round]] = {"engine": [], "baseline": []}
    for side in turns(tuple(rounds), arguments.rounds):
        if side == "engine":
            run, measured = measured_engine_run(arguments.engine, run_options(arguments))
            shape = (arguments.crops, run.prompt_tokens, run.cache_bytes, arguments.prefill_chunk)
            bound = memory_bound(manifest, *shape)
            times = Times(run.prefill_s, 1e-3 * statistics.median(run.decode_ms))
        else:
            measured = run_measured(baseline)
            times = times_in(measured.stdout + measured.stderr, pattern)
        print(f"{side}: prefill {times.prefill_s:.2f} s, decode {1e3 * times.decode_s:.0f} ms", file=sys.stderr)
        rounds[side].append(Round(times, measured.peak))
    peaks = {side: highest(of_side) for side, of_side in rounds.items()}
    memory = {"engine": memory_record(peaks["engine"], bound), "baseline": {"peak": peaks["baseline"].to_json()}}
    rows = [*times_rows(rounds), *resident_rows(*peaks.values()), *bound_rows(peaks["engine"], bound)]
    report("against", {**times_record(rounds), "memory": memory}, rows, arguments.json)
    return 0


def times_pattern(text: str) -> re.Pattern[str]:
    """The compiled --pattern; raises UsageError unless it names one group for prefill and one for decode."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(f"--pattern is no regular expression ({error}); see the module's docstring") from error
    for role in ("prefill", "decode"):
        groups = [f"{role}_{unit}" for unit in _UNIT_SECONDS]
        if sum(group in pattern.groupindex for group in groups) != 1:
            raise UsageError(f"--pattern must have exactly one of the named groups {' and '.join(groups)}")
    return pattern


def command_words(command: str) -> list[str]:
    """The words of --baseline as a shell takes them; raises UsageError for none and for an open quotation."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--baseline is no command ({error}); close its quotation marks") from error
    if not words:
        raise UsageError("--baseline is empty; give the command that runs the other program")
    return words


def times_in(printed: str, pattern: re.Pattern[str]) -> Times:
    """The times of the last match; raises TrolError when there is none."""
    matches = list(pattern.finditer(printed))
    if not matches:
        raise TrolError(
            f"nothing the baseline printed matches --pattern {pattern.pattern}; run it alone to see what it prints"
        )
    in_seconds: dict[str, float] = {}
    for group, value in matches[-1].groupdict().items():
        role, _, unit = group.rpartition("_")
        if role in ("prefill", "decode"):
            in_seconds[role] = _number(value, group) * _UNIT_SECONDS[unit]
    return Times(in_seconds["prefill"], in_seconds["decode"])


def _number(found: str | None, group: str) -> float:
    try:
        return float(found or "")
    except ValueError:
        raise TrolError(
            f"the group {group} of --pattern found {found!r} in what the baseline printed, expected a number; let it "
            "match digits and a point alone"
        ) from None


def highest(rounds: Sequence[Round]) -> Peak:
    """The peak of the round that held the most."""
    return max((one.peak for one in rounds), key=lambda peak: peak.total.total)


def times_record(rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Both sides' times in seconds, and engine / baseline for each (below 1: the engine is faster)."""
    record: dict[str, Any] = {}
    for role in ("prefill_s", "decode_s"):
        values = {side: [getattr(one.times, role) for one in of_side] for side, of_side in rounds.items()}
        record[role] = {side: summary(of_side) for side, of_side in values.items()}
        record[role]["engine_to_baseline"] = ratio(values["engine"], values["baseline"])
    return record


def times_rows(rounds: Mapping[str, Sequence[Round]]) -> list[Row]:
    record = times_record(rounds)
    rows: list[Row] = [("medians", "engine", "baseline", "engine / baseline")]
    for title, role, shown in (("prefill", "prefill_s", seconds), ("decode, per token", "decode_s", _as_milliseconds)):
        of_role = record[role]
        medians = (shown(of_role[side]["median"]) for side in ("engine", "baseline"))
        rows.append((title, *medians, f"{of_role['engine_to_baseline']['of_medians']:.3f}"))
    return rows


def _as_milliseconds(count: float) -> str:
    return milliseconds(1e3 * count)


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("against", (_EXAMPLE,))
    parser.add_argument("engine", metavar="engine.plan")
    parser.add_argument("--baseline", required=True, metavar="COMMAND", help="runs the same model on the same shape")
    parser.add_argument("--pattern", required=True, metavar="REGEX", help="finds prefill_s|ms and decode_s|ms in it")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each side (default: 3)")
    add_run_options(parser)
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    require_rounds(arguments.rounds)
    check_run_options(arguments)
    if "{threads}" in arguments.baseline and arguments.threads is None:
        raise UsageError("the baseline's command holds {threads}: say how many with --threads")
    return arguments


if __name__ == "__main__":
    run_script("against", main)
