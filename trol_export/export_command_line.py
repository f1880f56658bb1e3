"""trol-export: from a TroL checkpoint to one engine.plan."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from trol_export.needed import require_installed
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import UsageError

PRECISIONS = ("fp32", "fp16")
CPU = "cpu"
TARGETS = (CPU, "tensorrt-rtx", "tensorrt")
WEIGHT_FORMS = ("shared", "embedded")
OPSETS = ("modern", "legacy")
EXAMPLES = (
    ("--size 1.8b --precision fp16", "fetch BK-Lee/TroL-1.8B and write engine.plan"),
    ("--size tiny", "the small TroL that comes with this package, no network needed"),
    ("--checkpoint DIR --precision fp32 -o trol.plan", "from files you have"),
    ("--checkpoint DIR --precision fp16 --onnx-dir onnx", "also leave the graphs as .onnx files"),
    ("--size 1.8b --target cpu --target tensorrt-rtx", "also plans for RTX GPUs, built without one"),
    ("--add-target tensorrt engine.plan", "on a device: build its plans into an engine that is there"),
    ("--check DIR", "list everything about a checkpoint that would stop an export"),
)
# The options that go with a source that is no checkpoint to be exported.
_OWN_OPTIONS = {"check": ("check", "revision", "json"), "add_target": ("add_target", "weights", "opset", "json")}
# What an export needs beyond the runtime, as importable modules.
NEEDED = ("torch", "onnx", "onnx_ir", "onnxruntime", "safetensors", "sentencepiece", "huggingface_hub", "tqdm")


def script() -> NoReturn:
    """Console entry point."""
    run_script("trol-export", main)


def main(argv: Sequence[str] | None) -> int:
    """Parse, export or check, print the record; returns the exit code."""
    arguments = _parse(argv)
    if arguments.add_target is not None:
        return _add_target(arguments)
    require_installed("exporting", NEEDED, "export,cpu")
    return _check(arguments) if arguments.check is not None else _export(arguments)


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("trol-export", EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--size", metavar="S", help="a released model: 1.8b, 3.8b or 7b, or tiny, which comes with this package"
    )
    source.add_argument("--checkpoint", metavar="DIR|HF-ID", help="a checkpoint's folder, or a repository of the hub")
    source.add_argument("--check", metavar="DIR|HF-ID", help="report on a checkpoint and write nothing")
    source.add_argument(
        "--add-target",
        nargs=2,
        action="append",
        metavar=("TARGET", "FILE"),
        help="build plans of a target into an engine file",
    )
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the hub (default: main)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp16", help="how weights are stored (default: fp16)"
    )
    parser.add_argument(
        "--target",
        choices=TARGETS,
        action="append",
        help="what the engine runs on, beside the CPU, which every engine runs on; repeatable",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHT_FORMS,
        help="of plans: one copy for all of them, or one inside each (default: what a probe here found, else shared)",
    )
    parser.add_argument(
        "--opset",
        choices=OPSETS,
        help="of plans: the form of their graphs (default: legacy for TensorRT before 10.15, else modern)",
    )
    parser.add_argument("--max-seq", type=int, metavar="N", help="tokens of a row, answer included (default: 4096)")
    parser.add_argument("--max-batch", type=int, metavar="N", default=5, help="rows of a batch (default: 5)")
    parser.add_argument("--no-tokenizer", action="store_true", help="an engine for token ids, without text")
    parser.add_argument("-o", "--output", metavar="FILE", default="engine.plan", help="default: engine.plan")
    parser.add_argument("--onnx-dir", metavar="DIR", help="also write graphs and weights there, for other tools")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    arguments = parser.parse_args(argv)
    for source_name, own in _OWN_OPTIONS.items():
        if getattr(arguments, source_name) is not None:
            others = [name for name in vars(arguments) if name not in own]
            given = [name for name in others if getattr(arguments, name) != parser.get_default(name)]
            if given:
                option, other = (f"--{name.replace('_', '-')}" for name in (source_name, given[0]))
                raise UsageError(f"{option} exports nothing: leave out {other}")
    if arguments.add_target is not None:
        arguments.add_target, *more = arguments.add_target
        if more:
            raise UsageError(f"--add-target is given {1 + len(more)} times, expected once: call again for the next")
        if arguments.add_target[0] not in TARGETS[1:]:
            raise UsageError(f"--add-target {arguments.add_target[0]}: expected {' or '.join(TARGETS[1:])}")
    if arguments.add_target is None and not _plan_targets(arguments):
        for name in ("weights", "opset"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is for plans: add --target tensorrt-rtx or tensorrt, or leave it out")
    return arguments


def _plan_targets(arguments: Namespace) -> list[str]:
    """The targets of an export that plans are built for."""
    return [target for target in dict.fromkeys(arguments.target or ()) if target != CPU]


def _check(arguments: Namespace) -> int:
    from trol_export.checkpoint_check import check_checkpoint

    report = check_checkpoint(arguments.check, arguments.revision)
    print(json.dumps(report.to_json()) if arguments.json else report.table())
    return 0 if report.ok else 1


def _add_target(arguments: Namespace) -> int:
    target, path = arguments.add_target
    require_installed("building plans", ("onnx", "onnx_ir"), "rtx" if target == "tensorrt-rtx" else target)
    plan = _added(target, Path(path), arguments)
    print(json.dumps(plan) if arguments.json else f"{path}: {target} plans of {', '.join(plan['roles'])} added")
    return 0


def _added(target: str, path: Path, arguments: Namespace) -> dict[str, Any]:
    """Build a target's plans into an engine file as the arguments say; their record as JSON."""
    from trol_engines.add_plans import add_plans

    return asdict(add_plans(path, target, arguments.weights, arguments.opset))


def _export(arguments: Namespace) -> int:
    from trol_export.pipeline import ExportRequest, export_engine

    targets = _plan_targets(arguments)
    _require_buildable(targets, arguments)
    request = ExportRequest(
        source=arguments.checkpoint or arguments.size,
        is_size=arguments.size is not None,
        revision=arguments.revision,
        output=Path(arguments.output),
        precision=arguments.precision,
        max_seq=arguments.max_seq,
        max_batch=arguments.max_batch,
        tokenizer=not arguments.no_tokenizer,
        onnx_dir=Path(arguments.onnx_dir) if arguments.onnx_dir else None,
        overwrite=arguments.overwrite,
    )
    manifest = export_engine(request)
    if request.precision == "fp16" and manifest.fp16_range["verdict"] != "fits":
        print(
            f"warning: fp16 {manifest.fp16_range['verdict']}: the CPU computes in fp32 and is not affected, the stored "
            "fp16 graphs are",
            file=sys.stderr,
        )
    plans = [_added(target, request.output, arguments) for target in targets]
    if arguments.json:
        record = {"engine": str(request.output), "parity": manifest.parity, "fp16_range": manifest.fp16_range}
        print(json.dumps(record | {"plans": plans}))
        return 0
    print(_parity_table(manifest.parity["outputs"]))
    print(f"activations against fp16's range: {manifest.fp16_range['verdict']}")
    print(f"{request.output}: {request.output.stat().st_size:,} bytes, parity {manifest.parity['verdict']}")
    return 0


def _require_buildable(targets: Sequence[str], arguments: Namespace) -> None:
    """Raise, before anything is exported, what keeps this machine from building a target."""
    if targets:
        from trol_engines.tensorrt_package import import_tensorrt
        from trol_runtime.machine import describe_machine
        from trol_runtime.target_support import require_buildable

        machine = describe_machine()
        for target in targets:
            require_buildable(target, machine, precision=arguments.precision, opset=arguments.opset)
            import_tensorrt(target)


def _parity_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per output: the difference and its limit, the cosine and its limit, the verdict."""
    width = max(len(row["output"]) for row in rows)
    return "\n".join(
        f"{row['output']:<{width}}  max|d| {row['max_abs_diff']:.2e} (limit {row['limit']:.2e})  "
        f"cosine {row['cosine']:.8f} (limit {row['least_cosine']})  {row['verdict']}"
        for row in rows
    )
