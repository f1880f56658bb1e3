"""Finding the TensorRT library of the system."""

from __future__ import annotations

from pathlib import Path

import pytest

from system_tree import write_tree
from trol_runtime.tensorrt_library import tensorrt_library_version


def test_the_debian_package_tells_all_four_numbers(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"usr/lib/aarch64-linux-gnu/libnvinfer.so.10.16.2": ""})
    debian = {"libnvinfer10": "10.16.2.10-1+cuda13.2", "libnvinfer-bin": "99"}
    assert tensorrt_library_version(debian, root) == "10.16.2.10"


@pytest.mark.parametrize("folder", ["usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib"])
def test_without_the_package_the_newest_file_tells_three(tmp_path: Path, folder: str) -> None:
    names = ("libnvinfer.so.10", "libnvinfer.so.10.3.0", "libnvinfer.so.8.6.2", "libnvinfer_plugin.so.11.0.0")
    assert tensorrt_library_version({}, write_tree(tmp_path, {f"{folder}/{name}": "" for name in names})) == "10.3.0"


def test_a_system_without_it_has_none(tmp_path: Path) -> None:
    assert tensorrt_library_version({}, tmp_path) is None
