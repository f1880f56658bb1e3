"""What stands in a message: one printable line, its beginning and its end kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trol_runtime.one_line import one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("as it is, é 中", "as it is, é 中"),
        ("two\n  lines\r\n", "two lines"),
        ("\x1b[2J\0\u202e", r"\x1b[2J\x00\u202e"),
        ("half \ud800", r"half \ud800"),
        (ValueError("an error"), "an error"),
        ("", ""),
    ],
)
def test_text_becomes_one_printable_line(text: object, line: str) -> None:
    assert one_line(text) == line


def test_a_long_text_loses_its_middle() -> None:
    line = one_line("found " + "x" * 1000 + "; copy it again", most=60)
    assert line == "found " + "x" * 29 + " ... " + "xxxxx; copy it again"


@given(st.text(max_size=2000), st.integers(20, 500))
def test_any_text_is_printable_and_not_longer_than_it_may_be(text: str, most: int) -> None:
    line = one_line(text, most)
    assert line.isprintable()
    assert len(line) <= most
