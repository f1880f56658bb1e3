"""Progress is for people: on stderr, one line per finished step, and a bar only where someone looks."""

from __future__ import annotations

import io
import re
import sys

import pytest

from trol_export.progress import counted, step


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


def test_counted_chunks_are_the_chunks(capsys: pytest.CaptureFixture[str]) -> None:
    chunks: list[bytes | memoryview] = [b"abc", memoryview(b"de"), b""]
    assert list(counted(chunks, total=5)) == chunks
    assert capsys.readouterr().err == ""  # no terminal, no bar


def test_on_a_terminal_a_bar_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(counted([b"x" * 2000], total=4000))
    assert "weights" in terminal.getvalue()
