"""trol-inspect: what an engine file holds, what it runs on, its parity record; and what this machine is."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, NoReturn

from trol_runtime.bundle import Bundle
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.known_conflicts import Conflict
from trol_runtime.machine import MachineDescription
from trol_runtime.manifest import Manifest, PlanEntry
from trol_runtime.memory_need import memory_need, readable
from trol_runtime.one_line import one_line
from trol_runtime.plan_signature import built_here
from trol_runtime.system_report import SystemReport, system_report
from trol_runtime.target_support import PLAN_TARGETS
from trol_runtime.weight_form import Probe, probe

EXAMPLES = (
    ("engine.plan", "what is inside, what it runs on, its parity record"),
    ("engine.plan --json", "the manifest and the file's size, for scripts"),
    ("engine.plan --verify", "also read every block of the weights and compare SHA-256"),
    ("engine.plan --extract graphs/prefill.onnx -o prefill.onnx", "copy one entry out"),
    ("--system", "what this machine is, builds and runs; needs no engine file"),
    ("--system --probe", "and whether its plans had better share their weights, for later builds"),
)

# Tables of the manifest come with sorted keys; these columns read better in this order, others follow.
_COLUMNS = (
    *("target", "key", "role", "roles", "precision", "weights", "mixer", "opset", "sm", "built with", "built here"),
    *("entry", "bytes", "output", "part", "max_abs", "max_abs_diff", "limit", "cosine", "least_cosine", "verdict"),
)
_NUMBER = re.compile(r"-?[\d,]+(\.\d+)?(e[+-]\d+)?")


def script() -> NoReturn:
    """Console entry point."""
    run_script("trol-inspect", main)


def main(argv: Sequence[str] | None) -> int:
    """Parse, look, print; returns the exit code."""
    arguments = _parse(argv)
    if arguments.system:
        _inspect_system(arguments)
        return 0
    bundle = Bundle.open(arguments.engine)
    if arguments.verify:
        bundle.verify()
        blocks = len(bundle.manifest.sha256.arena_blocks)
        print(f"{bundle.path}: {len(bundle.entries)} entries and {blocks} blocks of weights verified", file=sys.stderr)
    if arguments.extract is not None:
        # Entry names are plain relative paths (Bundle.open sees to it): the last part is safe as a file name.
        destination = arguments.output or PurePosixPath(arguments.extract).name
        bundle.extract(arguments.extract, destination)
        print(f"{destination}: {bundle.entries[arguments.extract].size:,} bytes written", file=sys.stderr)
    elif arguments.json:
        manifest = json.loads(bundle.manifest_bytes)
        print(json.dumps({**manifest, "file_bytes": bundle.file_bytes}, sort_keys=True))
    else:
        print(describe(bundle))
    return 0


def _inspect_system(arguments: argparse.Namespace) -> None:
    report = system_report()
    probes = _probes(report) if arguments.probe else {}
    if arguments.json:
        found = {target: {**asdict(probe), "weights": probe.form} for target, probe in probes.items()}
        print(json.dumps({**report.to_json(), **({"probes": found} if found else {})}))
        return
    print(describe_system(report))
    if probes:
        print(f"\n{_section('weights of plans, by one linear', {name: str(found) for name, found in probes.items()})}")


def _probes(report: SystemReport) -> dict[str, Probe]:
    """Of every library whose plans are built and run here; raises TrolError where there is none."""
    answers = {target: (report.builds[target], report.runs[target]) for target in PLAN_TARGETS}
    targets = [target for target, answer in answers.items() if set(answer) == {"yes"}]
    if not targets:
        obstacles = (f"{target}: {next(one for one in answer if one != 'yes')}" for target, answer in answers.items())
        raise TrolError(f"--probe needs a GPU whose plans are built here; {'; '.join(obstacles)}")
    return {target: probe(target) for target in targets}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("trol-inspect", EXAMPLES)
    parser.add_argument("engine", nargs="?", metavar="engine.plan", help="engine file written by trol-export")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--verify", action="store_true", help="check every block of the weights, too")
    parser.add_argument("--extract", metavar="ENTRY", help="copy this entry of the engine file to a new file")
    parser.add_argument("-o", "--output", metavar="FILE", help="the new file (default: the entry's last name part)")
    parser.add_argument("--system", action="store_true", help="describe this machine instead of an engine file")
    parser.add_argument("--probe", action="store_true", help="with --system: time weights as inputs and inside plans")
    arguments = parser.parse_args(argv)
    if arguments.probe and not arguments.system:
        raise UsageError("--probe is about this machine: add --system, or leave it out")
    if arguments.system and (arguments.engine or arguments.verify or arguments.extract):
        raise UsageError("--system describes this machine: leave out the engine file and its options")
    if not arguments.system and arguments.engine is None:
        raise UsageError("which engine file? Type: trol-inspect engine.plan (or trol-inspect --system)")
    if arguments.output is not None and arguments.extract is None:
        raise UsageError("-o names the file for --extract ENTRY; add --extract, or leave out -o")
    if arguments.json and arguments.extract is not None:
        raise UsageError("--json and --extract exclude each other; run trol-inspect twice")
    return arguments


def describe(bundle: Bundle) -> str:
    """The engine file for a person: one fact per line, tables with a fixed column order."""
    manifest = bundle.manifest
    vision, decoder = manifest.model.vision, manifest.model.decoder
    weights = sum(tensor.nbytes for tensor in manifest.tensors.values())
    side = vision.image_size
    facts = {
        "file": f"{bundle.path}, {bundle.file_bytes:,} bytes, format {manifest.format}",
        "model": f"{manifest.model.arch}, {decoder.layers} layers, hidden {decoder.hidden_size:,}, "
        f"{decoder.heads} heads ({decoder.kv_heads} for K/V), vocabulary {decoder.vocab_size:,}",
        "vision": f"{vision.kind}, {vision.layers} layers, {side} x {side} pixels, "
        f"{vision.tokens_per_crop:,} tokens per crop",
        "precision": manifest.precision,
        "limits": f"{manifest.limits.max_seq:,} tokens per row, {manifest.limits.max_batch} rows",
        "weights": f"{weights:,} bytes in {len(manifest.tensors):,} tensors",
        "K/V cache": f"{manifest.model.kv_bytes_per_token():,} bytes per token and row (fp32)",
        "CPU memory": str(memory_need(manifest)),
        "prompt": "template stored" if manifest.prompt else "none: exported with --no-tokenizer, takes token ids only",
        "generation": _inline(manifest.generation),
        "producer": _inline(manifest.producer),
    }
    plans = [_plan_row(plan, manifest) for plan in manifest.plans]
    computes = [
        {"target": plan.target, "key": plan.key, "role": role, **groups}
        for plan in manifest.plans
        for role, groups in plan.computes.items()
    ]
    entries = [{"entry": entry.name, "bytes": f"{entry.size:,}"} for entry in bundle.entries.values()]
    sections = [
        "\n".join(_aligned(facts.items())),
        _section("runs on", {"plans": plans} if plans else {}),
        *([_section("computes in", {"roles": computes})] if computes else []),
        _section("entries", {"entries": entries}),
        _section("parity", manifest.parity),
        _section("fp16 range", manifest.fp16_range),
    ]
    return "\n\n".join(sections)


def _plan_row(plan: PlanEntry, manifest: Manifest) -> dict[str, Any]:
    """A plan in the table of what the engine runs on; the CPU's is no code, and so nobody asks who built it."""
    return {
        "target": plan.target,
        "key": plan.key,
        "roles": ", ".join(plan.roles),
        "precision": plan.precision,
        "weights": plan.weights or "-",
        "mixer": plan.mixer or "-",
        "opset": plan.opset,
        "sm": (plan.sm or "-") + (f" ({plan.gpu})" if plan.gpu else ""),
        "built with": _inline(plan.versions),
        "built here": "-" if plan.sm is None else built_here(plan, manifest.sha256.entries),
    }


def describe_system(report: SystemReport) -> str:
    """The machine for a person: one fact per line, what it builds and runs, and what is known not to work on it."""
    machine = report.machine
    installed = {name: version for name, version in machine.packages.items() if version is not None}
    facts = {
        "CPU": f"{machine.cpu}, {machine.cores} usable cores",
        "memory": f"{_bytes(machine.memory_total)}, {_bytes(machine.memory_available)} available",
        "system": machine.system,
        **_nvidia_facts(machine),
        "Python": machine.python,
        **installed,
        "not installed": ", ".join(name for name in machine.packages if name not in installed) or "-",
    }
    sections = [
        "\n".join(_aligned(facts.items())),
        _section("builds", report.builds),
        _section("runs", report.runs),
        _conflict_section(report.conflicts),
    ]
    return "\n\n".join(sections)


def _nvidia_facts(machine: MachineDescription) -> dict[str, str]:
    """Board, GPUs, driver and TensorRT, as far as the machine has them."""
    jetson, driver = machine.jetson, machine.nvidia
    facts = {} if jetson is None else {"board": f"{jetson.board}, {jetson.software}"}
    gpus = () if driver is None else driver.gpus
    for number, gpu in enumerate(gpus):
        memory = "memory shared with the CPU" if jetson else _bytes(gpu.memory)
        facts["GPU" if len(gpus) == 1 else f"GPU {number}"] = f"{gpu.name}, SM {gpu.sm or 'unknown'}, {memory}"
    if not gpus:
        facts["GPU"] = "no NVIDIA driver" if driver is None else "none to be seen"
    if driver is not None:
        facts["driver"] = f"{driver.version or 'unknown'}, runs CUDA up to {driver.cuda or 'unknown'}"
    if machine.tensorrt is not None:
        facts["TensorRT"] = f"{machine.tensorrt}, runs plans of this version only"
    return facts


def _conflict_section(conflicts: Sequence[Conflict]) -> str:
    if not conflicts:
        return "known conflicts: none"
    return "\n".join(["known conflicts:", *(f"  {conflict}\n    {conflict.source}" for conflict in conflicts)])


def _section(title: str, record: Mapping[str, Any]) -> str:
    """A JSON object for a person: plain values one per line, lists of objects as tables."""
    lines = [f"{title}:" if record else f"{title}: nothing recorded"]
    tables = {key: value for key, value in record.items() if _is_table(value)}
    lines += [f"  {line}" for line in _aligned((key, _inline(v)) for key, v in record.items() if key not in tables)]
    for rows in tables.values():
        lines += [f"  {line}" for line in _table(rows)]
    return "\n".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per row under a heading line; columns of numbers to the right."""
    names = sorted({name for row in rows for name in row}, key=_column_rank)
    columns = [_aligned_column(name, [_inline(row.get(name, "-")) for row in rows]) for name in names]
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _column_rank(name: str) -> tuple[int, str]:
    return (_COLUMNS.index(name) if name in _COLUMNS else len(_COLUMNS), name)


def _aligned_column(name: str, cells: list[str]) -> list[str]:
    width = max(len(name), *map(len, cells))
    numeric = all(_NUMBER.fullmatch(cell) for cell in cells)
    return [f"{cell:>{width}}" if numeric else f"{cell:<{width}}" for cell in (name, *cells)]


def _aligned(facts: Iterable[tuple[str, str]]) -> list[str]:
    facts = list(facts)
    width = max((len(name) for name, _ in facts), default=0)
    return [f"{name:<{width}}  {value}" for name, value in facts]


def _inline(value: Any) -> str:
    """A JSON value on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_inline, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else one_line(value)


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else readable(count)
