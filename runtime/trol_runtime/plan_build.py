"""Where no plan fits this machine, one is built from the graphs in the file."""

from __future__ import annotations

import sys

from trol_runtime.builder_process import run_builder
from trol_runtime.bundle import Bundle
from trol_runtime.errors import TrolError
from trol_runtime.plan_choice import Device
from trol_runtime.plan_store import StoredPlan, find_plan, why_none

BUILDER = "trol_engines.build_here"


def build_missing(bundle: Bundle, here: Device) -> StoredPlan:
    """The plan that `find_plan` did not find, built, and kept in the file or in the user's cache directory.

    What was found instead, and how far the build is, is said on stderr. Raises TrolError with what was missing and why
    it cannot be built.
    """
    missing = why_none(bundle, here)
    print(missing, file=sys.stderr)
    print(f"{bundle.path}: building {here.target} plans for SM {here.sm}; the next start finds them", file=sys.stderr)
    try:
        run_builder(BUILDER, here.target, str(bundle.path))
    except TrolError as refused:
        raise TrolError(f"{missing}; building one here failed: {refused}") from refused
    built = find_plan(Bundle.open(bundle.path), here)
    if built is None:
        raise TrolError(f"{missing}; what was built here does not fit; please report: trol-inspect --system")
    return built
