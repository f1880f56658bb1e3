"""Progress is for people: on stderr, one line per finished step, and more only where someone looks."""

from __future__ import annotations

import io
import re
import sys

import pytest

from trol_runtime.progress import step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_finished_step_is_one_line_with_its_time_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with step("trace prefill"):
        pass
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"trace prefill +0\.0 s\n", printed.err)


def test_a_step_that_fails_leaves_the_last_word_to_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), step("divide"):
        _ = 1 / 0
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_running_step_shows_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with step("trace prefill"):
        assert terminal.getvalue() == "trace prefill ...\r"


def test_on_a_terminal_it_shows_how_far_it_is_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with step("build") as say_share:
        say_share(0.25)
        assert re.search(r"\rbuild +25%\r$", terminal.getvalue())


def test_elsewhere_only_whole_lines_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    with step("build") as say_share:
        say_share(0.25)
        assert capsys.readouterr().err == ""


def test_what_stands_behind_the_time_may_depend_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    with step("build", lambda seconds: f", {seconds < 60}"):
        pass
    assert capsys.readouterr().err.endswith(" s, True\n")
