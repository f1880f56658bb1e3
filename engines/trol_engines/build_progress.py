"""How far a build of plans is, and about how long the rest of it will take.

The work of a plan is counted in nodes of its graph. What one of them takes is a matter of machine and library, so
nothing is said of the time before the first plan is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Lock
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
    """The share of a build that is done, from the phases within phases that TensorRT reports, in whatever thread.

    told: is given the share, 0 to 1, whenever it has grown
    """

    def __init__(self, told: Callable[[float], None]) -> None:
        self._told = told
        self._share = 0.0
        self._active: dict[str, _Phase] = {}
        self._lock = Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._active[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str) -> None:
        with self._lock:
            if name not in self._active:  # of a name that two phases had, the other one has ended
                return
            self._active[name].done += 1
            roots = (root for root, phase in self._active.items() if phase.parent is None)
            share = max((self._done(root) for root in roots), default=0.0)
            if share > self._share:
                self._share = share
                self._told(share)

    def finish(self, name: str) -> None:
        with self._lock:
            self._active.pop(name, None)

    def _done(self, name: str) -> float:
        """Whole steps, and of the one under way what the phases within it have done."""
        phase = self._active[name]
        within = [self._done(child) for child, other in self._active.items() if other.parent == name]
        return min(1.0, (phase.done + max(within, default=0.0)) / phase.steps)


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def progress_monitor(trt: Any, told: Callable[[float], None]) -> Any:
    """What a builder's configuration takes as its progress monitor (IProgressMonitor).

    Ctrl-C ends the build at its next step; `interrupted` says so then. It arrives in whatever Python runs, and TensorRT
    swallows what these functions raise.
    """
    phases = Phases(told)

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._noting_interruption(lambda: phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._noting_interruption(lambda: phases.step(phase_name))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._noting_interruption(lambda: phases.finish(phase_name))

        def _noting_interruption(self, note: Callable[[], None]) -> None:
            try:
                note()
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()


def _duration(seconds: float) -> str:
    """As exact as a guess is: "40 s", "3 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
