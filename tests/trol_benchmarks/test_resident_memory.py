from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from trol_benchmarks.resident_memory import Peak, Resident, peak_of, process_tree, resident, resident_of_status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")

MIB = 2**20


def test_the_three_kinds_are_read_in_bytes() -> None:
    status = "Name:\tpython\nVmRSS:\t 99 kB\nRssAnon:\t 10 kB\nRssFile:\t 20 kB\nRssShmem:\t 3 kB\nThreads:\t1\n"
    assert resident_of_status(status) == Resident(anonymous=10240, file=20480, shared=3072)


def test_a_zombie_has_no_memory() -> None:
    assert resident_of_status("Name:\tpython\nState:\tZ (zombie)\n") == Resident()


def test_a_process_that_is_gone_has_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert resident(process.pid) == Resident()


def test_what_is_taken_leaves_file_pages_out_and_the_total_does_not() -> None:
    memory = Resident(anonymous=5, file=20, shared=3)
    assert (memory.taken, memory.total) == (8, 28)


def test_the_peaks_of_taken_and_of_total_are_two_moments() -> None:
    peak = Peak()
    early, late = Resident(anonymous=9, file=1), Resident(anonymous=2, file=30)
    for sample in (Resident(), early, late, Resident(anonymous=1)):
        peak.add(sample)
    assert (peak.taken, peak.total, peak.samples) == (early, late, 4)


def test_the_tree_holds_children_of_children() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while len(members := list(process_tree(process.pid))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.communicate(b"\n")
    assert members[0] == process.pid
    assert len(members) == 2


def test_memory_a_child_process_took_and_gave_back_is_in_the_peak() -> None:
    allocate = "import sys; block = b'x' * (64 << 20); print(flush=True); sys.stdin.read(1)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {allocate!r}])"
    with (
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        peak_of(process.pid) as peak,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 20
        while peak.taken.anonymous < 64 * MIB and time.monotonic() < deadline:
            time.sleep(0.01)
        process.communicate(b"\n")
    assert 64 * MIB <= peak.taken.anonymous < 256 * MIB


def test_a_process_sees_its_own_file_pages() -> None:
    assert resident(os.getpid()).file > 0
