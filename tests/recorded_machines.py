"""Descriptions of machines by name, and what `trol-inspect --system` says of each: files in trol_runtime/machines.

One was recorded, the others are put together; the key `source` of each says from what.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trol_runtime.machine import MachineDescription

FOLDER = Path(__file__).with_name("trol_runtime") / "machines"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def recorded_json(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def recorded(name: str) -> MachineDescription:
    return MachineDescription.from_json(recorded_json(name))


def printed(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
