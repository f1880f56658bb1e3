"""Versions as numbers."""

from __future__ import annotations

import pytest

from trol_runtime.version_numbers import same_version, version_numbers


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("10.16.2.10-1+cuda13.2", (10, 16, 2, 10)),
        ("6.2.2+b24", (6, 2, 2)),
        ("2.13.0+cpu", (2, 13, 0)),
        ("3.12.3", (3, 12, 3)),
        ("1.25.0.dev20260331005", (1, 25, 0)),
        ("11", (11,)),
        ("unknown", ()),
        ("", ()),
    ],
)
def test_the_numbers_end_where_something_else_begins(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


def test_versions_compare_as_numbers_and_not_as_text() -> None:
    assert version_numbers("10.3.0") < version_numbers("10.13.3")


def test_a_version_told_in_fewer_numbers_is_the_same() -> None:
    assert same_version("10.3.0", "10.3.0.30")
    assert same_version("10.3.0.30-1+cuda12.5", "10.3.0")
    assert not same_version("10.3.0", "10.13.3")
    assert not same_version("10.16.2.10", "10.16.2.11")
