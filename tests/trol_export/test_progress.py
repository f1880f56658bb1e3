"""A bar of bytes, only where someone looks."""

from __future__ import annotations

import io
import sys

import pytest

from trol_export.progress import counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_counted_chunks_are_the_chunks(capsys: pytest.CaptureFixture[str]) -> None:
    chunks: list[bytes | memoryview] = [b"abc", memoryview(b"de"), b""]
    assert list(counted(chunks, total=5)) == chunks
    assert capsys.readouterr().err == ""  # no terminal, no bar


def test_on_a_terminal_a_bar_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(counted([b"x" * 2000], total=4000))
    assert "weights" in terminal.getvalue()
