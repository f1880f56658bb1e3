"""Versions as numbers that compare: "10.16.2.10-1+cuda13.2" is (10, 16, 2, 10)."""

from __future__ import annotations

import re


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version, up to what is none; () for a text that begins with none."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def same_version(one: str, other: str) -> bool:
    """Whether two versions agree as far as both are told: 10.3.0 is 10.3.0.30, 10.3.0 is not 10.13.0."""
    return all(a == b for a, b in zip(version_numbers(one), version_numbers(other), strict=False))
