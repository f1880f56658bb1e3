"""Run TroL engines: `TroL.load("engine.plan").generate("What is in the picture?", images=["x.png"])`.

Importing this module is instant and needs nothing; numpy, pillow, tokenizers and the backend come with `TroL.load`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trol_runtime.engine import TroL
    from trol_runtime.generation_config import GenerationConfig

__all__ = ["GenerationConfig", "TroL"]

_MODULE_OF = {"TroL": "trol_runtime.engine", "GenerationConfig": "trol_runtime.generation_config"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
