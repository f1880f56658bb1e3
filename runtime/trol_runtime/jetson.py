"""NVIDIA Jetson: which board this is, its Jetson Linux (L4T), JetPack and GPU, from the files they come with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trol_runtime.system_files import ROOT, text_of
from trol_runtime.version_numbers import version_numbers

# JetPack by Jetson Linux release, for boards on which the package nvidia-jetpack is not installed.
# github.com/rbonghi/jetson_stats, jtop/core/jetson_variables.py at f41d5ca, and its issue 910 for 36.5.2;
# github.com/OE4T/meta-tegra at d5d93dc, and its pull request 2339 for 39.2.1.
_JETPACKS = {
    **{"36.3.0": "6.0", "36.4.0": "6.1", "36.4.2": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1"},
    **{"36.5.0": "6.2.2", "36.5.2": "6.2.3"},
    **{"38.2.0": "7.0", "38.2.1": "7.0", "38.2.2": "7.0", "38.4.0": "7.1"},
    **{"39.2.0": "7.2", "39.2.1": "7.2.1"},
}

# JetPacks by the TensorRT they bring: github.com/OE4T/meta-tegra, tensorrt-core_*.bb on the branches scarthgap
# (10.3.0.30, L4T 36.5.0), master-l4t-r38.2.x and -r38.4.x (10.13.3.9) and master at d5d93dc (10.16.2.10, L4T 39.2.0).
_JETPACKS_WITH_TENSORRT: dict[tuple[int, ...], str] = {
    (10, 3, 0): "6.1 or 6.2",
    (10, 13, 3): "7.0 or 7.1",
    (10, 16, 2): "7.2",
}

# The SM of the GPU by system-on-chip: github.com/rbonghi/jetson_stats as above. Thor's was 10.1 before CUDA 13, with
# which its JetPacks begin.
_SMS = {"tegra234": ("Orin", "8.7"), "tegra264": ("Thor", "11.0")}


@dataclass(frozen=True)
class Jetson:
    """A board and its software; versions are None where nothing tells them.

    board: as its device tree names it
    soc: the system-on-chip, such as "tegra234"
    l4t: Jetson Linux, such as "36.5.0"
    jetpack: such as "6.2.2"
    """

    board: str
    soc: str | None
    l4t: str | None
    jetpack: str | None

    @property
    def gpu(self) -> tuple[str, str] | None:
        """Name and SM of the GPU on the chip, None for a chip unknown here."""
        return None if self.soc is None else _SMS.get(self.soc)

    @property
    def software(self) -> str:
        """JetPack and Jetson Linux as a person would say them; the latter alone where the JetPack is unknown."""
        linux = f"L4T {self.l4t or 'unknown'}"
        return linux if self.jetpack is None else f"JetPack {self.jetpack} ({linux})"


def read_jetson(debian: Mapping[str, str], root: Path = ROOT) -> Jetson | None:
    """The board this is, None on any other machine.

    debian: installed Debian packages
    """
    tree = root / "proc/device-tree"
    soc = re.search(r"nvidia,(tegra[0-9]+)\0", text_of(tree / "compatible") + "\0")
    # A container has the release and not the device tree, or the package and neither.
    l4t = l4t_of_release(text_of(root / "etc/nv_tegra_release")) or _begin(debian.get("nvidia-l4t-core"))
    if soc is None and l4t is None:
        return None
    return Jetson(
        board=text_of(tree / "model").strip("\0\n ") or "a Jetson",
        soc=soc[1] if soc else None,
        l4t=l4t,
        jetpack=_begin(debian.get("nvidia-jetpack")) or _JETPACKS.get(l4t or ""),
    )


def l4t_of_release(nv_tegra_release: str) -> str | None:
    """The release in the text of /etc/nv_tegra_release: "# R36 (release), REVISION: 5.0, ..." is 36.5.0."""
    match = re.search(r"# R([0-9]+) \(release\), REVISION: ([0-9.]+)", nv_tegra_release)
    return f"{match[1]}.{match[2]}" if match else None


def jetpacks_with_tensorrt(version: str, sm: str | None) -> str | None:
    """The JetPacks that bring this TensorRT; None for a GPU that no Jetson has, or a version not known here."""
    if all(sm != known for _, known in _SMS.values()):
        return None
    return _JETPACKS_WITH_TENSORRT.get(version_numbers(version)[:3])


def _begin(debian_version: str | None) -> str | None:
    """A Debian version without the build: 6.2.2+b24 is 6.2.2, 36.4.4-20250616085344 is 36.4.4."""
    return None if debian_version is None else ".".join(map(str, version_numbers(debian_version))) or None
