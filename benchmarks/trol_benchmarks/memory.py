"""Resident memory of one run of an engine, against what it has to hold (`memory_bound` states the count).

    python -m trol_benchmarks.memory engine.plan --threads 2 --json memory.json

Runs the engine in a process of its own (`engine_run`) and samples it from /proc. The ratio is the whole resident
memory, mapped weights included, to the bound.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from trol_benchmarks.engine_run import EngineRun, add_run_options, run_options
from trol_benchmarks.measured_command import Measured, run_measured
from trol_benchmarks.memory_bound import MemoryBound, memory_bound
from trol_benchmarks.report import Row, add_json_option, gib, report
from trol_benchmarks.resident_memory import Peak
from trol_runtime.bundle import Bundle
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser


def main(argv: Sequence[str] | None) -> int:
    """Parse, measure, print; returns the exit code."""
    arguments = _parse(argv)
    run, measured = measured_engine_run(arguments.engine, run_options(arguments))
    shape = (arguments.crops, run.prompt_tokens, run.cache_bytes, arguments.prefill_chunk)
    bound = memory_bound(Bundle.open(arguments.engine).manifest, *shape)
    rows = [*resident_rows(measured.peak), *bound_rows(measured.peak, bound)]
    report("memory", memory_record(measured.peak, bound), rows, arguments.json)
    return 0


def measured_engine_run(engine: str, options: Sequence[str]) -> tuple[EngineRun, Measured]:
    """`engine_run` in a process of its own, with its peak memory."""
    measured = run_measured([sys.executable, "-m", "trol_benchmarks.engine_run", engine, *options])
    return EngineRun.from_json(measured.stdout), measured


def memory_record(peak: Peak, bound: MemoryBound) -> Mapping[str, Any]:
    return {"peak": peak.to_json(), "bound": bound.to_json(), "resident_to_bound": peak.total.total / bound.total}


def resident_rows(*peaks: Peak) -> list[Row]:
    """Resident memory by kind, one column per peak."""
    kinds = {"anonymous": "anonymous", "shared": "shared", "file": "file (mapped weights, code)", "total": "together"}
    rows: list[Row] = [("resident at the peak", *["" for _ in peaks])]
    for kind, title in kinds.items():
        rows.append((f"  {title}", *[gib(getattr(peak.total, kind)) for peak in peaks]))
    return rows


def bound_rows(peak: Peak, bound: MemoryBound) -> list[Row]:
    """The parts of the bound, and the resident memory in units of it."""
    return [
        ("what the run has to hold", ""),
        ("  mapped weights", gib(bound.weights)),
        ("  fp32 copies", gib(bound.copies)),
        ("  KV cache", gib(bound.cache)),
        ("  activations", gib(bound.activations)),
        ("  together", gib(bound.total)),
        ("resident / bound", f"{peak.total.total / bound.total:.3f}"),
    ]


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("memory", (("engine.plan --threads 2", "resident memory of one run"),))
    parser.add_argument("engine", metavar="engine.plan")
    add_run_options(parser)
    add_json_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script("memory", main)
