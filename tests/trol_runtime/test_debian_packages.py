"""dpkg's status file, as JetPack's packages stand in it."""

from __future__ import annotations

from pathlib import Path

from system_tree import write_tree
from trol_runtime.debian_packages import debian_packages

STATUS = """\
Package: libnvinfer10
Status: install ok installed
Priority: optional
Section: multiverse/devel
Installed-Size: 2034561
Maintainer: cudatools <cudatools@nvidia.com>
Architecture: arm64
Source: tensorrt
Version: 10.3.0.30-1+cuda12.5
Depends: libcudart.so.12
Description: TensorRT runtime libraries
 NVIDIA TensorRT is a high performance runtime.
 Version: 99

Package: nvidia-jetpack
Status: deinstall ok config-files
Architecture: arm64
Version: 6.2.1+b38

Package: nvidia-l4t-core
Status: install ok installed
Architecture: arm64
Version: 36.5.0-20260115194252
"""


def test_versions_of_installed_packages_are_read(tmp_path: Path) -> None:
    assert debian_packages(write_tree(tmp_path, {"var/lib/dpkg/status": STATUS})) == {
        "libnvinfer10": "10.3.0.30-1+cuda12.5",
        "nvidia-l4t-core": "36.5.0-20260115194252",
    }


def test_a_system_without_dpkg_has_none(tmp_path: Path) -> None:
    assert debian_packages(tmp_path) == {}
