"""A training run in its folder: what it keeps there, what interrupts it, and how it goes on where it stopped."""

from __future__ import annotations

import io
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trol_export.tiny.recipe import Recipe, recipe_json
from trol_export.tiny.training import Training
from trol_export.tiny.training_log import TrainingLog
from trol_runtime.atomic_file import write_whole
from trol_runtime.errors import TrolError, UsageError

STATE = "training.pt"

_STEPS_BETWEEN_LINES = 50
_STEPS_BETWEEN_SAVES = 200
_STEPS_BETWEEN_VALIDATIONS = 250
_VALIDATED_PHASES = ("decoder", "everything")  # before them hardly a question about a picture is answered right
_VALIDATION_PICTURES = 192
_VALIDATION_SEED = 1
# The parts of a recipe that a command's options set; the others belong to a version.
_OPTIONS = {"seed", "traversal"}
_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class TrainingRun:
    """A new run of `recipe`, or the one that `folder` holds; it trains, and keeps the folder up to date.

    threads:  of torch
    compiled: whether torch fuses what is not matrix multiplication
    Raises UsageError when the folder holds a run of another recipe, TrolError when its state cannot be read.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, threads: int, compiled: bool) -> None:
        torch.set_num_threads(threads)  # before the first weights: last bits of their orthogonal ones depend on it
        self.training = Training(recipe)
        self._log = TrainingLog()
        self._folder = folder
        # Last bits depend on these; the rest of the run is its recipe.
        self._conditions: dict[str, Any] = {"threads": threads, "compiled": compiled, **_versions()}
        self._earlier: list[dict[str, Any]] = []  # conditions of the steps before these, each with where they ended
        self._whole = True  # whether no step has begun that has not ended
        if (folder / STATE).exists():
            self._restore(folder / STATE)
        if compiled:
            self.training.model.compile_layers()

    def train(self, minutes: float | None) -> None:
        """Steps until the run is done or its time is over; whatever ends it, the folder holds the last whole step."""
        before, begin = self._log.seconds, time.monotonic()
        with self._kept():
            self._validate_if_due()  # what an interruption left out
            while not self.training.done:
                with self._step():
                    self._log.add_step(self.training.step())
                passed = time.monotonic() - begin
                self._log.seconds = before + passed
                self._report()
                self._validate_if_due()
                if len(self._log.steps) % _STEPS_BETWEEN_SAVES == 0:
                    self._save()
                if minutes is not None and passed > 60 * minutes and not self.training.done:
                    say(f"stopped after {minutes:g} minutes; the same command goes on")
                    break

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Write the folder at the end, unless a step broke off: some weights may have changed already."""
        try:
            yield
        finally:
            if self._whole:
                self._save()
                self._log.write(self._folder, self._record())

    def _record(self) -> dict[str, Any]:
        """Which run this is: its recipe, and under which conditions it went on and had come so far."""
        return {
            "recipe": recipe_json(self.training.recipe),
            "conditions": self._conditions,
            "earlier_conditions": self._earlier,
        }

    @contextmanager
    def _step(self) -> Iterator[None]:
        with _interruptible_afterwards():
            self._whole = False
            yield
            self._whole = True

    def _validate_if_due(self) -> None:
        if self._is_validation_due() and not self._log.is_validated:
            families = self.training.accuracy("validation", _VALIDATION_PICTURES, _VALIDATION_SEED)
            self._log.add_validation(families)
            say("  ".join(f"{family} {share.correct / share.n:.3f}" for family, share in families.items()))

    def _is_validation_due(self) -> bool:
        training = self.training
        if training.done:
            return True
        number = training.step_number
        return training.phase.name in _VALIDATED_PHASES and number > 0 and number % _STEPS_BETWEEN_VALIDATIONS == 0

    def _report(self) -> None:
        if len(self._log.steps) % _STEPS_BETWEEN_LINES == 0:
            recent = self._log.steps[-_STEPS_BETWEEN_LINES:]
            loss = sum(step["loss"] for step in recent) / len(recent)
            last, minutes = recent[-1], self._log.seconds / 60
            say(f"{last['phase']:<10} step {last['step'] + 1:>5}  loss {loss:.4f}  {minutes:.1f} min")

    def _save(self) -> None:
        state = {
            **self._record(),
            "training": self.training.state(),
            "log": self._log.state(),
        }
        data = io.BytesIO()
        torch.save(state, data)
        write_whole(self._folder / STATE, data.getbuffer(), overwrite=True, option="--folder")

    def _restore(self, path: Path) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):  # what torch thinks of files that are not its own
                saved = torch.load(path, weights_only=True)
            recipe = recipe_json(self.training.recipe)
            other = _different(recipe, saved["recipe"])
            if not other:
                self.training.restore(saved["training"])
                self._log = TrainingLog(**saved["log"])
                before, self._earlier = saved["conditions"], saved["earlier_conditions"]
        except Exception as error:  # torch raises nothing more specific for a file that is not its own
            raise TrolError(
                f"{path} cannot be read ({type(error).__name__}), expected a state of a training run: "
                "delete it to begin anew, or choose another --folder"
            ) from None
        if other:
            how = "call with that run's options" if other <= _OPTIONS else "take the version that began it"
            raise UsageError(
                f"{path} is of a run with other {', '.join(sorted(other))}: {how} to go on, or choose another --folder"
            )
        say(f"going on in {self._folder} after {len(self._log.steps):,} steps")
        changed = _different(before, self._conditions)
        if changed:
            self._earlier.append({"until": len(self._log.steps), **before})
        for name in sorted(changed):
            now = self._conditions.get(name)
            say(f"until here with {name} {before.get(name)}, from here with {now}: last bits may differ")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _different(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The keys whose values differ, or that only one of them has."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _versions() -> dict[str, str]:
    packages = ("trol-export", "torch", "numpy", "pillow", "matplotlib", "tokenizers")
    return {name: version(name) for name in packages}


@contextmanager
def _interruptible_afterwards() -> Iterator[None]:
    """Ctrl-C, or a polite kill, ends the program behind the `with` block; pressed again, at once."""
    pressed: list[int] = []

    def remember(number: int, _: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    # One that is ignored stays so: a job in the background of a shell ignores Ctrl-C.
    handlers = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
    for number in handlers:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if pressed:  # also where the block failed: a terminal's Ctrl-C ends the compilers that torch waits for, too
            raise KeyboardInterrupt from None
