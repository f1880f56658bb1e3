"""The memory this process may use: what the machine has, within the limits of the container around it."""

from __future__ import annotations

import re
from pathlib import Path

from trol_runtime.system_files import ROOT, text_of


def memory_total_bytes(root: Path = ROOT) -> int | None:
    """Memory this process may use at most: the machine's, or the container's limit if that is lower."""
    return min(_known(_meminfo("MemTotal", root), *(limit for limit, _ in _cgroup_memory(root))), default=None)


def memory_available_bytes(root: Path = ROOT) -> int | None:
    """Memory this process can still take without swapping, page cache that can be dropped included."""
    room = [limit - used for limit, used in _cgroup_memory(root)]
    return min(_known(_meminfo("MemAvailable", root), *room), default=None)


def _meminfo(key: str, root: Path) -> int | None:
    match = re.search(rf"^{key}: *([0-9]+) kB$", text_of(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _cgroup_memory(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every memory-limited control group (version 2) around this process; inner ones first.

    Used does not count inactive file pages, which the kernel drops when the group needs room.
    """
    found = []
    mount = root / "sys/fs/cgroup"
    own = re.search(r"^0::/(.*)$", text_of(root / "proc/self/cgroup"), re.MULTILINE)
    group = None if own is None else mount / own[1].strip("/")
    while group is not None and group != mount.parent:
        limit, used = _number(text_of(group / "memory.max")), _number(text_of(group / "memory.current"))
        if limit is not None and used is not None:  # a group without a limit says "max"
            droppable = re.search(r"^inactive_file ([0-9]+)$", text_of(group / "memory.stat"), re.MULTILINE)
            found.append((limit, used - (int(droppable[1]) if droppable else 0)))
        group = group.parent
    return found


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _known(*values: int | None) -> list[int]:
    return [value for value in values if value is not None]
