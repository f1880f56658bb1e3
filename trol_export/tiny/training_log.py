"""What a training run went through: loss and accuracy, kept as JSON and drawn as curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trol_export.tiny.plots import as_png
from trol_export.tiny.training import Metrics, Share
from trol_runtime.atomic_file import write_whole

CURVES_JSON, CURVES_PNG = "curves.json", "curves.png"
_SMOOTHED = 50  # steps whose mean a point of the loss curve is


class TrainingLog:
    """Every step's metrics, and accuracies by family whenever they were measured.

    seconds: that training took up to its last step, what was measured before that step included
    """

    def __init__(
        self, steps: Sequence[dict[str, Any]] = (), validation: Sequence[dict[str, Any]] = (), seconds: float = 0.0
    ) -> None:
        self.steps = list(steps)
        self.validation = list(validation)
        self.seconds = seconds

    @property
    def is_validated(self) -> bool:
        """Whether accuracy was measured after the last step."""
        return bool(self.validation) and self.validation[-1]["steps"] == len(self.steps)

    def add_step(self, metrics: Metrics) -> None:
        self.steps.append(metrics._asdict())

    def add_validation(self, families: dict[str, Share]) -> None:
        """Accuracies after the last step added."""
        measured = {family: share.correct / share.n for family, share in families.items()}
        n = {family: share.n for family, share in families.items()}
        self.validation.append({"steps": len(self.steps), "accuracy": measured, "n": n})

    def state(self) -> dict[str, Any]:
        """What another log is made of to go on with this one."""
        return {"steps": self.steps, "validation": self.validation, "seconds": self.seconds}

    def write(self, folder: Path, run: Mapping[str, Any]) -> None:
        """curves.json and curves.png in `folder`; both replace what is there. run: what else to say of it, by key.

        The JSON has the losses by phase, to four decimals; the learning rates follow from the recipe.
        """
        losses = {phase: [round(loss, 4) for loss in losses] for phase, losses in self._losses().items()}
        curves = {**run, "seconds": self.seconds, "validation": self.validation, "loss": losses}
        write_whole(folder / CURVES_JSON, f"{json.dumps(curves)}\n".encode(), overwrite=True, option="--folder")
        write_whole(folder / CURVES_PNG, self._drawn(), overwrite=True, option="--folder")

    def _losses(self) -> dict[str, list[float]]:
        """The loss of every step, by phase."""
        losses: dict[str, list[float]] = {}
        for step in self.steps:
            losses.setdefault(step["phase"], []).append(step["loss"])
        return losses

    def _drawn(self) -> bytes:
        """A PNG: loss and accuracy over the steps of all phases."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 7), layout="constrained")
        loss, accuracy = figure.subplots(2, 1, sharex=True)
        begin = 0
        for phase, losses in self._losses().items():
            width = min(_SMOOTHED, len(losses))
            smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
            loss.plot(np.arange(len(smooth)) + begin + width, smooth, label=phase)
            begin += len(losses)
        loss.set(ylabel=f"loss (mean of {_SMOOTHED} steps)", yscale="log")
        if self.steps:
            loss.legend()
        for family in sorted({family for point in self.validation for family in point["accuracy"]}):
            points = [(p["steps"], p["accuracy"][family]) for p in self.validation if family in p["accuracy"]]
            accuracy.plot(*zip(*points, strict=True), label=family, marker=".")
        accuracy.set(xlabel="step", ylabel="exact answers, validation", ylim=(0, 1))
        if self.validation:
            accuracy.legend(ncols=3, fontsize="small")
        for axes in (loss, accuracy):
            axes.grid(alpha=0.3)
        return as_png(figure)
