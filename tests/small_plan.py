"""A plan that is no plan, for the small engine: for tests of where plans are kept and when they may run."""

from __future__ import annotations

from typing import Any

from trol_runtime.manifest import Manifest, PlanEntry
from trol_runtime.plan_choice import BuiltFor, Device, graphs_sha256

SMALL_DEVICE = Device("tensorrt", "10.16.2.10", "8.7", "linux-aarch64")

SMALL_CONTENTS = {"prefill": b"prefill plan", "decode": b"decode plan" * 3}


def small_built_for(manifest: Manifest, **changes: Any) -> BuiltFor:
    """What a plan for SMALL_DEVICE is built for; `manifest` is that of a written engine."""
    fields: dict[str, Any] = {
        "target": SMALL_DEVICE.target,
        "version": SMALL_DEVICE.version,
        "sm": (SMALL_DEVICE.sm,),
        "platform": SMALL_DEVICE.platform,
        "limits": manifest.limits,
        "precision": "fp16",
        "weights": "shared",
        "mixer": "plugin",
        "graphs": graphs_sha256(manifest),
    }
    return BuiltFor(**{**fields, **changes})


def small_plan(manifest: Manifest, **changes: Any) -> PlanEntry:
    """Its record, not yet signed."""
    return small_built_for(manifest, **changes).plan(tuple(SMALL_CONTENTS), {"cuda": "13.0"})
