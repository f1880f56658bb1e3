"""Trains TroL-tiny: python -m trol_export.tiny.train. A run that was interrupted goes on where it stopped.

The folder of a run holds training.pt (everything to go on from), curves.json, curves.png and, at the end, checkpoint/.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trol_runtime.atomic_file import write_whole
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import TrolError, UsageError

if TYPE_CHECKING:
    from trol_export.tiny.recipe import Recipe
    from trol_export.tiny.training import Training
    from trol_export.tiny.training_log import TrainingLog

DEFAULT_FOLDER = "build/tiny"
STATE = "training.pt"
CHECKPOINT = "checkpoint"
EXAMPLES = (
    ("", f"train in {DEFAULT_FOLDER}, or go on there"),
    ("--minutes 10", "stop after ten minutes; the same command goes on"),
    ("--folder DIR --seed 1", "another run"),
    ("--folder DIR --no-traversal", "the same network with one pass over the prompt, to compare with"),
)
_STEPS_BETWEEN_LINES = 50
_STEPS_BETWEEN_SAVES = 200
_STEPS_BETWEEN_VALIDATIONS = 250
_VALIDATION_PICTURES = 192
_VALIDATION_SEED = 1
_COMPILERS = ("g++", "c++", "clang++")
# What torch takes in any case.
_LARGEST_SEED = 2**32 - 1
_MOST_THREADS = 1024


def main(argv: Sequence[str] | None) -> int:
    """Parse, train, write the checkpoint; returns the exit code."""
    arguments = _parse(argv)
    from trol_export.tiny.checkpoint_writer import require_replaceable, write_checkpoint
    from trol_export.tiny.recipe import RELEASED, config_json

    if not arguments.no_compile:
        _require_compiler()
    folder = Path(arguments.folder)
    recipe = replace(RELEASED, seed=arguments.seed, traversal=not arguments.no_traversal)
    require_replaceable(folder / CHECKPOINT)
    _make(folder)
    training, log = _begun(recipe, folder)
    if not training.done:
        _train(training, log, folder, arguments)
    if training.done:
        write_checkpoint(
            folder / CHECKPOINT,
            config_json(training.config),
            training.lessons.tokenizer_json,
            training.released_weights(),
        )
        _say(f"wrote {folder / CHECKPOINT}")
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
    if "CXX" not in os.environ and not any(map(shutil.which, _COMPILERS)):
        raise TrolError(
            f"found no C++ compiler ({', '.join(_COMPILERS)}), by which torch fuses operations: "
            "install one, or train without: --no-compile"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror}); choose another --folder") from None


def _plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON would give it back."""
    return json.loads(json.dumps(asdict(recipe)))


def _begun(recipe: Recipe, folder: Path) -> tuple[Training, TrainingLog]:
    """A new run, or the one in the folder."""
    import torch

    from trol_export.tiny.training import Training
    from trol_export.tiny.training_log import TrainingLog

    path = folder / STATE
    training = Training(recipe)
    if not path.exists():
        return training, TrainingLog()
    try:
        saved = torch.load(path, weights_only=True)
        other = {name for name, value in _plain(recipe).items() if saved["recipe"].get(name) != value}
        if not other:
            training.restore(saved["training"])
            log = TrainingLog(**saved["log"])
    except Exception as error:  # torch raises nothing more specific for a file that is not its own
        raise TrolError(
            f"{path} cannot be read ({type(error).__name__}), expected a state of a training run: "
            "delete it to begin anew, or choose another --folder"
        ) from None
    if other:
        raise UsageError(
            f"{path} is of a run with other {', '.join(sorted(other))}: "
            "call with that run's options to go on, or choose another --folder"
        )
    _say(f"going on in {folder} after {len(log.steps):,} steps")
    return training, log


def _train(training: Training, log: TrainingLog, folder: Path, arguments: Namespace) -> None:
    """Steps until the run is done or its time is over; whatever ends it, the folder holds the last whole step."""
    import torch

    torch.set_num_threads(arguments.threads)
    if not arguments.no_compile:
        training.model.compile_layers()
    begin = time.monotonic()
    whole = True  # whether the last step is complete
    try:
        while not training.done:
            with _interruptible_afterwards():
                whole = False
                metrics = training.step()
                log.add_step(metrics)
                whole = True
            _report(log, begin)
            if training.done or (
                metrics.phase == "everything" and training.step_number % _STEPS_BETWEEN_VALIDATIONS == 0
            ):
                _validate(training, log)
            if len(log.steps) % _STEPS_BETWEEN_SAVES == 0:
                _save(training, log, folder)
            if arguments.minutes is not None and time.monotonic() - begin > 60 * arguments.minutes:
                _say(f"stopped after {arguments.minutes:g} minutes; the same command goes on")
                break
    finally:
        if whole:
            _save(training, log, folder)
            log.write(folder)


@contextmanager
def _interruptible_afterwards() -> Iterator[None]:
    """Ctrl-C, or a polite kill, ends the program behind the `with` block; pressed again, at once."""
    pressed: list[int] = []

    def remember(number: int, _: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if pressed:
        raise KeyboardInterrupt


def _validate(training: Training, log: TrainingLog) -> None:
    families = training.accuracy("validation", _VALIDATION_PICTURES, _VALIDATION_SEED)
    log.add_validation(families)
    _say("  ".join(f"{family} {share.correct / share.n:.3f}" for family, share in families.items()))


def _report(log: TrainingLog, begin: float) -> None:
    if len(log.steps) % _STEPS_BETWEEN_LINES == 0:
        recent = log.steps[-_STEPS_BETWEEN_LINES:]
        loss = sum(step["loss"] for step in recent) / len(recent)
        last = recent[-1]
        minutes = (time.monotonic() - begin) / 60
        _say(f"{last['phase']:<10} step {last['step'] + 1:>5}  loss {loss:.4f}  {minutes:.1f} min")


def _save(training: Training, log: TrainingLog, folder: Path) -> None:
    import torch

    data = io.BytesIO()
    torch.save({"recipe": _plain(training.recipe), "training": training.state(), "log": log.to_json()}, data)
    write_whole(folder / STATE, data.getbuffer(), overwrite=True, option="--folder")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_script("trol_export.tiny.train", main)
