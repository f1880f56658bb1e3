"""What this machine is, what it builds and runs, what is known not to work on it. Needs no engine and no backend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trol_runtime.known_conflicts import Conflict, known_conflicts
from trol_runtime.machine import MachineDescription, describe_machine
from trol_runtime.target_support import build_answers, run_answers


@dataclass(frozen=True)
class SystemReport:
    """A machine and what follows from it.

    builds, runs: per target, "yes" or what to do.
    conflicts: bad combinations that it has, those in a precision that is not asked for included
    """

    machine: MachineDescription
    builds: dict[str, str]
    runs: dict[str, str]
    conflicts: tuple[Conflict, ...]

    def to_json(self) -> dict[str, Any]:
        """The machine's keys and, beside them, the answers."""
        answers = asdict(self)
        return {**answers.pop("machine"), **answers}


def system_report() -> SystemReport:
    """Look at this machine."""
    return report_on(describe_machine())


def report_on(machine: MachineDescription) -> SystemReport:
    """What follows from a description."""
    return SystemReport(machine, build_answers(machine), run_answers(machine), known_conflicts(machine))
