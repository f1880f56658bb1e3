"""The version of the TensorRT library of the system, which may be there where Python sees no package of it.

JetPack installs both for the system's Python only: an environment without its packages finds the library alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from trol_runtime.system_files import ROOT
from trol_runtime.version_numbers import version_numbers


def tensorrt_library_version(debian: Mapping[str, str], root: Path = ROOT) -> str | None:
    """Like "10.3.0.30" from the Debian package, "10.3.0" from the file's name; None where there is none.

    debian: installed Debian packages
    """
    packaged = [version for name, version in debian.items() if re.fullmatch(r"libnvinfer[0-9]+", name)]
    files = [
        path.name.removeprefix("libnvinfer.so.")
        for folder in ("usr/lib", "usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu")
        for path in (root / folder).glob("libnvinfer.so.*.*")
    ]
    newest = max(map(version_numbers, packaged or files), default=())
    return ".".join(map(str, newest)) or None
