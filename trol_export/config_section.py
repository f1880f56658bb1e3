"""One JSON object of a checkpoint's configuration, read key by key; everything wrong with it is collected, not raised.

A key that is missing or wrong yields a placeholder, so that reading goes on and all deviations are found at once.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T", bound=str)

# More than any model has, and the bytes of a tensor of two such sizes still fit 64 bits.
_MOST = 2**24


@dataclass
class Findings:
    """What reading a configuration brought up.

    deviations: reasons to refuse the checkpoint, one line each
    notes:      things worth knowing that change nothing
    sizes_known: whether every size could be read, so that a model of that shape can be laid out
    """

    deviations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes_known: bool = True


class Section:
    """A JSON object with a name for messages, such as "config.json llm_config"."""

    def __init__(self, name: str, data: dict[str, Any], findings: Findings) -> None:
        self.name = name
        self.data = data
        self.findings = findings
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """The value as it stands, None when absent."""
        self._read.add(key)
        return self.data.get(key)

    def subsection(self, key: str) -> Section:
        """The object under `key`; empty when absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self.deviates(key, "an object")
        return Section(f"{self.name} {key}", value if isinstance(value, dict) else {}, self.findings)

    def count(self, key: str, default: int | None = None, at_least: int = 1, at_most: int = _MOST) -> int:
        """An integer in bounds; without a default the key is required."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if _is_integer(value) and at_least <= value <= at_most:
            return value
        self.findings.sizes_known = False
        self.deviates(key, f"an integer from {at_least} to {at_most}")
        return at_least

    def measured(self, key: str, size: int | None, default: int, at_most: int = _MOST) -> int:
        """A size that tensors tell and the config may repeat: tensors first, then config, then `default`."""
        if size is None:
            return self.count(key, default=default, at_most=at_most)
        if not 1 <= size <= at_most:
            self.findings.sizes_known = False
            self.findings.deviations.append(
                f"{self.name}: '{key}' is {size} by the tensors' shapes, expected 1 to {at_most}"
            )
            return 1
        if self.count(key, default=size, at_most=at_most) != size:
            self.deviates(key, f"{size}, which the tensors' shapes say")
        return size

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; without a default the key is required."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if is_positive(value):
            return float(value)
        self.deviates(key, "a number above 0")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.deviates(key, "true or false")
        return value if isinstance(value, bool) else default

    def choice(self, key: str, allowed: tuple[T, ...], default: T) -> T:
        """One of the allowed texts."""
        self.only(key, *allowed)
        value = self.get(key)
        return value if value in allowed else default

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse a value with which the official code computes something else; absent means the official default."""
        value = self.get(key)
        if value is not None and value not in allowed:
            self.deviates(key, " or ".join(map(repr, allowed)))

    def token(self, key: str, limit: int) -> int | None:
        """A token id below `limit`, None when absent."""
        value = self.get(key)
        if value is None or is_token(value, limit):
            return value
        self.deviates(key, f"a token id from 0 to {limit - 1}")
        return 0

    def deviates(self, key: str, expected: str) -> None:
        found = f"is {_shortened(self.data[key])}" if self.data.get(key) is not None else "is missing"
        self.findings.deviations.append(f"{self.name}: '{key}' {found}, expected {expected}")

    def unread_keys(self) -> set[str]:
        return self.data.keys() - self._read

    def note_unread_keys(self, inert: Collection[str]) -> None:
        """Note every key that was neither read here nor is known to change nothing."""
        unread = sorted(self.unread_keys() - set(inert))
        self.findings.notes.extend(
            f"{self.name}: '{key}' ({_shortened(self.data[key])}) is unknown and has no effect here" for key in unread
        )


def is_positive(value: Any) -> bool:
    """Whether this is a JSON number above 0 that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def is_token(value: Any, limit: int) -> bool:
    """Whether this is a token id below `limit`."""
    return _is_integer(value) and 0 <= value < limit


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
