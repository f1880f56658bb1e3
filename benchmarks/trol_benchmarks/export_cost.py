"""What an export costs: its weight stage against `cp` and `sha256sum` of the checkpoint, its tracing time, its memory.

    python -m trol_benchmarks.export_cost CHECKPOINT --precision fp16 --folder DISK --json export_cost.json

Each round copies and hashes the checkpoint's weight files, and runs `trol-export` until its weights are written, taking
turns in going first. The export is then interrupted; a last one goes to the end, parity check included, and gives the
peak memory. Both sides read the same files and write to the same folder, which needs room for one engine or one copy.
What is compared is seconds per byte written: an export that widens fp16 to fp32 is held to the bytes it has to write
and hash. Times of stages are those that `trol-export` prints.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trol_benchmarks.measured_command import installed_command, open_process, require_success, run_measured
from trol_benchmarks.report import Row, add_json_option, gib, report, seconds
from trol_benchmarks.resident_memory import Peak, peak_of
from trol_benchmarks.samples import ratio, require_rounds, summary, turns
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import TrolError, UsageError

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")
# trol-export prints gigabytes and seconds with one or two decimals.
_LEAST_BYTES = 500_000_000
# What trol-export prints when a stage is done.
_STAGE = re.compile(r"(?P<stage>\S.*?) +(?P<seconds>\d+\.\d) s")
_WEIGHTS = re.compile(r"write weights, (?P<gigabytes>[\d.]+) GB")


@dataclass(frozen=True)
class Export:
    """One run of `trol-export`: its own times in seconds by stage, the seconds it ran, its memory."""

    stages: dict[str, float]
    seconds: float
    peak: Peak

    @property
    def tracing_seconds(self) -> float:
        return sum(time for stage, time in self.stages.items() if stage.startswith("trace "))

    @property
    def weight_seconds_per_gb(self) -> float:
        """Seconds per 10^9 bytes that the weight stage wrote."""
        ((match, time),) = [
            (match, time) for stage, time in self.stages.items() if (match := _WEIGHTS.fullmatch(stage))
        ]
        return time / float(match["gigabytes"])

    def to_json(self) -> dict[str, Any]:
        return {"stages": self.stages, "seconds": self.seconds, "peak": self.peak.to_json()}


def main(argv: Sequence[str] | None) -> int:
    """Parse, measure, print; returns the exit code."""
    arguments = _parse(argv)
    files = weight_files(arguments.checkpoint)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="export_cost.") as name:
        folder = Path(name)
        command = export_command(arguments, folder / "engine.plan")
        copies: list[float] = []
        exports: list[Export] = []
        for side in turns(("copy", "export"), arguments.rounds):
            if side == "copy":
                copies.append(copy_and_hash(files, folder))
                print(f"copy: {copies[-1]:.2f} s per GB", file=sys.stderr)
            else:
                exports.append(export_weights(command))
                print(f"export: {exports[-1].weight_seconds_per_gb:.2f} s per GB", file=sys.stderr)
            # What one side leaves to be written would be written in the other's time.
            os.sync()
        whole = export_whole(command)
    report("export_cost", cost_record(copies, exports, whole), cost_rows(copies, exports, whole), arguments.json)
    return 0


def weight_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint's folder that hold tensors; raises UsageError when that is nothing worth timing."""
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is not a folder; give the folder of a checkpoint")
    files = sorted(file for file in checkpoint.iterdir() if file.suffix in _WEIGHT_SUFFIXES)
    if not files:
        raise UsageError(f"{checkpoint} holds no {', '.join(_WEIGHT_SUFFIXES)} files; give the folder of a checkpoint")
    if sum(file.stat().st_size for file in files) < _LEAST_BYTES:
        raise UsageError(
            f"{checkpoint} holds less than {_LEAST_BYTES / 1e6:.0f} MB of weights, whose times would be noise; "
            "give a larger checkpoint"
        )
    return files


def export_command(arguments: Namespace, engine: Path) -> list[str]:
    source = ["--checkpoint", str(arguments.checkpoint), "--precision", arguments.precision]
    return [installed_command("trol-export"), *source, "--no-tokenizer", "-o", str(engine)]


def copy_and_hash(files: Sequence[Path], folder: Path) -> float:
    """Seconds per 10^9 bytes of `cp` and then `sha256sum` of the copies, which are gone afterwards."""
    copies = [str(folder / file.name) for file in files]
    start = time.perf_counter()
    run_measured(["cp", *map(str, files), str(folder)])
    run_measured(["sha256sum", *copies])
    elapsed = time.perf_counter() - start
    total = sum(file.stat().st_size for file in files)
    for copy in copies:
        os.unlink(copy)
    return 1e9 * elapsed / total


def export_weights(command: Sequence[str]) -> Export:
    """Run an export until its weights are written and interrupt it; raises TrolError when it ends before that."""
    start = time.perf_counter()
    stages: dict[str, float] = {}
    with open_process(command) as process, peak_of(process.pid) as peak:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            stages |= stages_in([line])
            if any(_WEIGHTS.fullmatch(stage) for stage in stages):
                process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a background job ignores
                process.communicate()  # it removes what it wrote and says so
                return Export(stages, time.perf_counter() - start, peak)
        process.wait()
        require_success(command, process.returncode, "".join(lines))
    raise TrolError("trol-export ended without saying that it wrote weights; use the version this program came with")


def export_whole(command: Sequence[str]) -> Export:
    """Run an export to its end and remove what it wrote."""
    measured = run_measured(command)
    Path(command[-1]).unlink()
    return Export(stages_in(measured.stderr.splitlines()), measured.seconds, measured.peak)


def stages_in(lines: Iterable[str]) -> dict[str, float]:
    """Seconds by stage, from the lines trol-export prints as stages end; other lines say nothing."""
    matches = (_STAGE.fullmatch(line.strip()) for line in lines)
    return {match["stage"]: float(match["seconds"]) for match in matches if match}


def cost_record(copies: Sequence[float], exports: Sequence[Export], whole: Export) -> dict[str, Any]:
    weights = [export.weight_seconds_per_gb for export in exports]
    return {
        "copy_and_hash_s_per_gb": summary(copies),
        "weight_stage_s_per_gb": summary(weights),
        "weight_stage_to_copy": ratio(weights, copies),
        "tracing_s": summary([export.tracing_seconds for export in [*exports, whole]]),
        "interrupted": [export.to_json() for export in exports],
        "whole": whole.to_json(),
    }


def cost_rows(copies: Sequence[float], exports: Sequence[Export], whole: Export) -> list[Row]:
    record = cost_record(copies, exports, whole)
    peak = whole.peak
    return [
        ("cp + sha256sum, median", f"{record['copy_and_hash_s_per_gb']['median']:.2f} s/GB"),
        ("weight stage, median", f"{record['weight_stage_s_per_gb']['median']:.2f} s/GB"),
        ("weight stage / cp + sha256sum", f"{record['weight_stage_to_copy']['of_medians']:.2f}"),
        ("tracing, median", seconds(record["tracing_s"]["median"])),
        ("whole export", seconds(whole.seconds)),
        ("peak anonymous + shared memory", gib(peak.taken.taken)),
        ("file pages at that moment", gib(peak.taken.file)),
    ]


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("export_cost", (("CHECKPOINT --precision fp16", "what exporting this folder costs"),))
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16", help="default: fp16")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each side (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    require_rounds(arguments.rounds)
    return arguments


if __name__ == "__main__":
    run_script("export_cost", main)
