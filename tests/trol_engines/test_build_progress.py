"""A build says which plan it is at, how long it took and, once one is done, about how long the others will take."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from trol_engines.build_progress import BuildProgress, Phases, progress_monitor

NODES = {"vision": 100, "prefill": 300, "decode": 200}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def build(progress: BuildProgress, role: str, clock: list[float], seconds: float) -> None:
    with progress.building(role):
        clock[0] += seconds


def test_every_plan_has_a_line_with_what_the_rest_will_take_by_its_nodes(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    progress = BuildProgress("tensorrt", NODES)
    for role, seconds in (("vision", 10.0), ("prefill", 70.0), ("decode", 40.0)):
        build(progress, role, clock, seconds)
    assert capsys.readouterr().err.splitlines() == [
        "build the tensorrt plan of vision (1 of 3)            10.0 s, about 50 s left",
        "build the tensorrt plan of prefill (2 of 3)           70.0 s, about 40 s left",
        "build the tensorrt plan of decode (3 of 3)            40.0 s",
    ]


def test_what_takes_minutes_is_told_in_minutes(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    build(BuildProgress("tensorrt", NODES), "vision", clock, 30)
    assert capsys.readouterr().err.endswith("30.0 s, about 2 min left\n")


# What TensorRT reports


def reported() -> tuple[Phases, list[float]]:
    shares: list[float] = []
    return Phases(shares.append), shares


def test_a_share_is_of_the_steps_of_the_outermost_phase() -> None:
    phases, shares = reported()
    phases.start("engine", None, 4)
    phases.step("engine")
    phases.step("engine")
    assert shares == [0.25, 0.5]


def test_phases_within_a_step_are_parts_of_it() -> None:
    phases, shares = reported()
    phases.start("engine", None, 2)
    phases.start("tactics", "engine", 2)
    phases.start("nodes", "tactics", 5)
    phases.step("nodes")
    phases.finish("nodes")
    phases.step("tactics")
    phases.finish("tactics")
    phases.step("engine")
    assert shares == [0.05, 0.25, 0.5]


def test_a_share_never_falls_and_never_passes_one() -> None:
    phases, shares = reported()
    phases.start("engine", None, 1)
    phases.start("first", "engine", 2)
    phases.step("first")
    phases.finish("first")
    phases.start("second", "engine", 4)
    for _ in range(6):
        phases.step("second")
    assert shares == [0.5, 0.75, 1.0]


def test_a_phase_without_steps_is_no_division_by_zero() -> None:
    phases, shares = reported()
    phases.start("engine", None, 0)
    phases.step("engine")
    assert shares == [1.0]


def test_phases_of_one_name_do_not_trip_it() -> None:
    phases, shares = reported()
    phases.start("engine", None, 2)
    phases.start("engine", None, 4)
    phases.finish("engine")
    phases.step("engine")
    phases.finish("engine")
    assert shares == []


def test_threads_may_report_at_once() -> None:
    phases, shares = reported()
    phases.start("engine", None, 4000)

    def work(number: int) -> None:
        for step in range(1000):
            phases.start(f"{number} {step}", "engine", 1)
            phases.step("engine")
            phases.finish(f"{number} {step}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


class FakeTrt:
    class IProgressMonitor:
        pass


def test_ctrl_c_ends_the_build_at_its_next_step() -> None:
    def interrupted(share: float) -> None:
        raise KeyboardInterrupt

    monitor = progress_monitor(FakeTrt, interrupted)
    monitor.phase_start("engine", None, 4)
    assert not monitor.interrupted
    assert monitor.step_complete("engine", 0) is False
    assert monitor.interrupted


def test_otherwise_a_build_goes_on() -> None:
    monitor = progress_monitor(FakeTrt, lambda share: None)
    monitor.phase_start("engine", None, 4)
    assert monitor.step_complete("engine", 0) is True
    monitor.phase_finish("engine")
    assert not monitor.interrupted
