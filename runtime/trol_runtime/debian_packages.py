"""Versions of installed Debian packages, read from dpkg's status file: JetPack comes as such packages."""

from __future__ import annotations

import re
from pathlib import Path

from trol_runtime.system_files import ROOT, text_of


def debian_packages(root: Path = ROOT) -> dict[str, str]:
    """Version by name of every installed package; empty on a system without dpkg."""
    paragraphs = text_of(root / "var/lib/dpkg/status").split("\n\n")
    records = (dict(re.findall(r"^(Package|Status|Version): (.*)$", text, re.MULTILINE)) for text in paragraphs)
    return {
        record["Package"]: record["Version"]
        for record in records
        if record.keys() == {"Package", "Status", "Version"} and record["Status"].endswith(" installed")
    }
