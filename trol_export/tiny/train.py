"""Trains TroL-tiny: python -m trol_export.tiny.train. A run that was interrupted goes on where it stopped.

The folder of a run holds training.pt (everything to go on from), curves.json, curves.png and, at the end, checkpoint/.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trol_export.needed import require_installed
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import TrolError, UsageError

DEFAULT_FOLDER = "build/tiny"
CHECKPOINT = "checkpoint"
EXAMPLES = (
    ("", f"train in {DEFAULT_FOLDER}, or go on there"),
    ("--minutes 10", "stop after ten minutes; the same command goes on"),
    ("--folder DIR --seed 1", "another run"),
    ("--folder DIR --no-traversal", "the same network with one pass over the prompt, to compare with"),
)
NEEDED = ("torch", "onnx_ir", "safetensors", "tokenizers", "sentencepiece", "matplotlib")
# What torch takes in any case.
_LARGEST_SEED = 2**32 - 1
_MOST_THREADS = 1024


def main(argv: Sequence[str] | None) -> int:
    """Parse, train, write the checkpoint; returns the exit code."""
    arguments = _parse(argv)
    require_installed("training", NEEDED, "export,bench")
    from trol_export.tiny.checkpoint_writer import require_replaceable, write_checkpoint
    from trol_export.tiny.freed_memory import keep_freed_memory
    from trol_export.tiny.recipe import RELEASED, config_json
    from trol_export.tiny.training_run import TrainingRun, say

    if not arguments.no_compile:
        _require_compiler()
    keep_freed_memory()
    folder = Path(arguments.folder)
    recipe = replace(RELEASED, seed=arguments.seed, traversal=not arguments.no_traversal)
    require_replaceable(folder / CHECKPOINT)
    _make(folder)
    run = TrainingRun(recipe, folder, threads=arguments.threads, compiled=not arguments.no_compile)
    run.train(arguments.minutes)
    training = run.training
    if training.done:
        write_checkpoint(
            folder / CHECKPOINT,
            config_json(training.config),
            training.lessons.tokenizer_json,
            training.released_weights(),
        )
        say(f"wrote {folder / CHECKPOINT}")
    return 0


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("python -m trol_export.tiny.train", EXAMPLES)
    parser.add_argument(
        "--folder", default=DEFAULT_FOLDER, metavar="DIR", help=f"of the run (default: {DEFAULT_FOLDER})"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of first weights and scenes (default: 0)")
    parser.add_argument("--no-traversal", action="store_true", help="train without second pass and mixer")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long, to go on later")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of torch (default: 2)")
    parser.add_argument("--no-compile", action="store_true", help="without a C++ compiler: slower, other last bits")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.seed <= _LARGEST_SEED:
        raise UsageError(f"--seed is {arguments.seed}, expected 0 to {_LARGEST_SEED}")
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise UsageError(f"--minutes is {arguments.minutes:g}, expected more than 0")
    if not 1 <= arguments.threads <= _MOST_THREADS:
        raise UsageError(f"--threads is {arguments.threads}, expected 1 to {_MOST_THREADS}")
    return arguments


def _require_compiler() -> None:
    """Raise TrolError unless there are the program that torch starts, with no arguments of its own, and its headers."""
    compiler = os.environ.get("CXX", "g++")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(compiler) is None:
        found = f"there is no C++ compiler {compiler!r}" + (", which CXX names" if "CXX" in os.environ else "")
    elif not header.is_file():
        found = f"the C++ compiler needs {header}, which is not there"
    else:
        return
    raise TrolError(
        f"{found}; by a compiler torch fuses operations: install what is missing, or train without, more slowly: "
        "--no-compile"
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror}); choose another --folder") from None


if __name__ == "__main__":
    run_script("trol_export.tiny.train", main)
