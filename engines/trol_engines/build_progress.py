"""How far a build of plans is, and about how long the rest of it will take.

The work of a plan is counted in nodes of its graph. What one of them takes is a matter of machine and library, so
nothing is said of the time before the first plan is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from trol_runtime.progress import step


class BuildProgress:
    """Tells of the plans of a target as they are built, one after the other.

    nodes: of every role's graph
    """

    def __init__(self, target: str, nodes: Mapping[str, int]) -> None:
        self._target, self._nodes = target, nodes
        self._built: list[str] = []
        self._seconds = 0.0

    def building(self, role: str) -> AbstractContextManager[Callable[[float], None]]:
        """While the plan of a role is built: a `step`."""

        def left(seconds: float) -> str:
            self._built.append(role)
            self._seconds += seconds
            return self._left()

        number = f"{len(self._built) + 1} of {len(self._nodes)}"
        return step(f"build the {self._target} plan of {role} ({number})", left)

    def _left(self) -> str:
        """By what the nodes so far took."""
        built = sum(self._nodes[role] for role in self._built)
        left = sum(self._nodes.values()) - built
        return f", about {_duration(self._seconds * left / built)} left" if left else ""


class Phases:
    """The share of a build that is done, from the phases within phases that TensorRT reports.

    told: is given the share, 0 to 1, whenever it has grown
    """

    def __init__(self, told: Callable[[float], None]) -> None:
        self._told = told
        self._share = 0.0
        self._active: dict[str, list[Any]] = {}  # by name: parent, steps, steps done

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._active[name] = [parent, max(steps, 1), 0]

    def step(self, name: str) -> None:
        self._active[name][2] += 1
        share = max((self._done(root) for root, (parent, *_) in self._active.items() if not parent), default=0.0)
        if share > self._share:
            self._share = share
            self._told(share)

    def finish(self, name: str) -> None:
        del self._active[name]

    def _done(self, name: str) -> float:
        """Whole steps, and of the one under way what the phases within it have done."""
        _, steps, done = self._active[name]
        within = [self._done(child) for child, (parent, *_) in self._active.items() if parent == name]
        return min(1.0, (done + max(within, default=0.0)) / steps)


def progress_monitor(trt: Any, told: Callable[[float], None]) -> Any:
    """What a builder's configuration takes as its progress monitor (IProgressMonitor); it never ends a build."""
    phases = Phases(told)

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


def _duration(seconds: float) -> str:
    """As exact as a guess is: "40 s", "3 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
