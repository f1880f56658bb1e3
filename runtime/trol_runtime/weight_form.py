"""Whether weights are inputs of plans, which share one copy, or lie in them: what a probe on this machine found.

A build may store its own weights in the order its kernels read them best; what that is worth only the device can say.
Of a machine without a probe nothing is known, and weights are shared.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trol_runtime.atomic_file import write_whole
from trol_runtime.builder_process import run_builder
from trol_runtime.errors import TrolError
from trol_runtime.one_line import one_line
from trol_runtime.plan_choice import Device
from trol_runtime.user_cache import cache_directory, make_folder

# "shared": inputs, so that all plans read one copy; "embedded": a copy in each plan, which a build may rearrange.
WeightForm = Literal["shared", "embedded"]

PROBER = "trol_engines.weight_probe"
_WORTH = 1.1  # how many times faster embedded must be: it takes nearly three times the memory
_PRIVATE_FILE = 0o600


@dataclass(frozen=True)
class Probe:
    """One linear of one token, timed both ways: microseconds of a run, medians."""

    shared_us: float
    embedded_us: float

    @property
    def form(self) -> WeightForm:
        """The better one: embedded where its speed is worth its memory."""
        return "embedded" if self.shared_us > _WORTH * self.embedded_us else "shared"

    def __str__(self) -> str:
        return f"{self.form} ({self.shared_us:.1f} us a run as input, {self.embedded_us:.1f} us inside the plan)"


def probe(target: str) -> Probe:
    """Time both ways with the library `target` on this machine's GPU, and record it.

    Raises TrolError where plans of the target are not built or do not run here.
    """
    said = run_builder(PROBER, target)
    try:
        return Probe(**json.loads(said))
    except (ValueError, TypeError):
        found = one_line(said) or "nothing"
        raise TrolError(f"the probe of {target} says {found}, expected two times; please report this") from None


def record_probe(probe: Probe, device: Device, precision: str) -> None:
    """Keep what was found, for every later build here. Raises TrolError when the disk refuses."""
    path = _path(device, precision)
    make_folder(path.parent)
    data = json.dumps(asdict(probe)).encode("ascii")
    write_whole(path, data, overwrite=True, option="XDG_CACHE_HOME", mode=_PRIVATE_FILE)


def recorded_probe(device: Device, precision: str) -> Probe | None:
    """What was found by a probe with this library on this kind of GPU; None where there was none."""
    try:
        found = json.loads(_path(device, precision).read_bytes())
        return Probe(float(found["shared_us"]), float(found["embedded_us"]))
    except (OSError, ValueError, KeyError, TypeError):  # none, or not whole: as good as none
        return None


def best_form(device: Device, precision: str) -> WeightForm:
    """Of weights in this precision, as far as is known."""
    probe = recorded_probe(device, precision)
    return "shared" if probe is None else probe.form


def _path(device: Device, precision: str) -> Path:
    return cache_directory() / "probes" / f"{device.target}-{device.version}-sm{device.sm}-{precision}.json"
