"""Files in which the kernel and the distribution describe a machine, read as text; a missing one is empty.

Every reader takes the `root` that its paths are under, so that it can be pointed at the files of another machine.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def text_of(path: Path) -> str:
    """The whole text, "" where the system has no such file or keeps it to itself."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
