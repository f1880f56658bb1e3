"""Freed memory stays with the process where the C library can be asked, and nothing breaks where it cannot."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from trol_export.tiny import freed_memory
from trol_export.tiny.freed_memory import keep_freed_memory

PROGRAM = """
from pathlib import Path
import numpy as np
from trol_export.tiny.freed_memory import keep_freed_memory

def held():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) // 1024

assert keep_freed_memory()
before = held()
array = np.ones(100 << 20, np.uint8)
del array
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_what_was_freed_is_still_held() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 90  # of the 100 MiB; without, all but a page or two is gone


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory() is False
    assert ctypes is freed_memory.ctypes
