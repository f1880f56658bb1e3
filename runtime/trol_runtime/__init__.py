"""Run TroL engines: `TroL.load("engine.plan").generate("What is in the picture?", images=["x.png"])`.

Importing this module is instant and needs nothing; numpy, pillow, tokenizers and the backend come with `TroL.load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trol_runtime.engine import TroL

__all__ = ["TroL"]


def __getattr__(name: str) -> Any:
    if name == "TroL":
        from trol_runtime.engine import TroL

        return TroL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
