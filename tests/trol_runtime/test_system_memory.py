"""Memory: what the machine says, within what the container allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from system_tree import write_tree
from trol_runtime.system_memory import memory_available_bytes, memory_total_bytes

GIB = 2**30


def test_available_memory_is_part_of_the_total() -> None:
    total, available = memory_total_bytes(), memory_available_bytes()
    if total is None or available is None:
        pytest.skip("this system does not say how much memory it has")
    assert 0 < available <= total


def test_memory_is_read_from_meminfo(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path, {"proc/meminfo": "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:    4194304 kB\n"}
    )
    assert (memory_total_bytes(root), memory_available_bytes(root)) == (8 * GIB, 4 * GIB)


@pytest.mark.parametrize("meminfo", ["", "MemTotal: lots\n", "Mem Total: 1 kB\n"])
def test_memory_is_unknown_where_the_system_does_not_say(tmp_path: Path, meminfo: str) -> None:
    root = write_tree(tmp_path, {"proc/meminfo": meminfo})
    assert (memory_total_bytes(root), memory_available_bytes(root)) == (None, None)


def test_a_container_limit_below_the_machine_counts_and_droppable_pages_do_not(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {60 * GIB // 1024} kB\n",
            "proc/self/cgroup": "0::/service/engine\n",
            "sys/fs/cgroup/service/engine/memory.max": "max\n",
            "sys/fs/cgroup/service/engine/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/service/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/service/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/service/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
        },
    )
    assert (memory_total_bytes(root), memory_available_bytes(root)) == (8 * GIB, 5 * GIB)


def test_control_groups_of_version_1_are_passed_over(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path, {"proc/meminfo": "MemTotal: 1048576 kB\n", "proc/self/cgroup": "12:memory:/user.slice\n"}
    )
    assert memory_total_bytes(root) == GIB
