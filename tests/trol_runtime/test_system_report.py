"""The system report: a machine, and what follows from it. What is printed of it: test_inspect_command_line."""

from __future__ import annotations

import json

import pytest

from recorded_machines import NAMES, recorded
from trol_runtime.system_report import report_on, system_report


def test_this_machine_can_be_reported_on() -> None:
    report = system_report()
    assert report.machine.cores >= 1
    assert report.runs["cpu"]


@pytest.mark.parametrize("name", NAMES)
def test_json_is_the_machine_and_beside_its_keys_the_answers(name: str) -> None:
    machine = recorded(name)
    values = report_on(machine).to_json()
    assert json.loads(json.dumps(values)).keys() == values.keys()
    answers = {key: values.pop(key) for key in ("builds", "runs", "conflicts")}
    assert values == machine.to_json()
    assert list(answers["builds"]) == ["cpu", "tensorrt-rtx", "tensorrt"]
    assert list(answers["runs"]) == ["cpu", "cuda", "tensorrt-rtx", "tensorrt"]
    assert all(
        set(conflict) == {"name", "targets", "precisions", "advice", "source"} for conflict in answers["conflicts"]
    )
