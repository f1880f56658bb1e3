"""Boards, told apart by the texts that NVIDIA's images carry."""

from __future__ import annotations

from pathlib import Path

import pytest

from system_tree import write_tree
from trol_runtime.jetson import Jetson, jetpacks_with_tensorrt, l4t_of_release, read_jetson

# First lines as in github.com/rbonghi/jetson_stats, issues 677, 711 and 864.
R36 = (
    "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Jun 16 16:07:13 UTC 2025\n"
    "# KERNEL_VARIANT: oot\n"
    "TARGET_USERSPACE_LIB_DIR=nvidia\n"
    "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"
)
R38 = (
    "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, "
    "DATE: Fri Aug 22 00:55:42 UTC 2025\n"
)
R39 = (
    "# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Jun  1 09:28:48 PM UTC 2026\n"
)
AGX_ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0nvidia,tegra23x\0",
}
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
}


@pytest.mark.parametrize(
    ("text", "l4t"),
    [(R36, "36.4.4"), (R38, "38.2.0"), (R39, "39.2.0"), ("", None), ("# R36\n", None), ("R36 REVISION: 4.4", None)],
)
def test_the_release_is_read_from_nv_tegra_release(text: str, l4t: str | None) -> None:
    assert l4t_of_release(text) == l4t


def test_an_orin_is_recognised(tmp_path: Path) -> None:
    board = read_jetson({}, write_tree(tmp_path, {**AGX_ORIN, "etc/nv_tegra_release": R36}))
    assert board == Jetson("NVIDIA Jetson AGX Orin Developer Kit", "tegra234", "36.4.4", "6.2.1")
    assert board.gpu == ("Orin", "8.7")
    assert board.software == "JetPack 6.2.1 (L4T 36.4.4)"


def test_a_thor_is_recognised(tmp_path: Path) -> None:
    board = read_jetson({}, write_tree(tmp_path, {**THOR, "etc/nv_tegra_release": R38}))
    assert board == Jetson("NVIDIA Jetson AGX Thor Developer Kit", "tegra264", "38.2.0", "7.0")
    assert board.gpu == ("Thor", "11.0")


def test_the_installed_jetpack_counts_more_than_the_table(tmp_path: Path) -> None:
    board = read_jetson(
        {"nvidia-jetpack": "6.2.3+b81"}, write_tree(tmp_path, {**AGX_ORIN, "etc/nv_tegra_release": R36})
    )
    assert board is not None
    assert board.jetpack == "6.2.3"


def test_where_the_jetpack_cannot_be_told_the_jetson_linux_is(tmp_path: Path) -> None:
    board = read_jetson({}, write_tree(tmp_path, {**AGX_ORIN, "etc/nv_tegra_release": R36.replace("4.4", "9.9")}))
    assert board is not None
    assert board.jetpack is None
    assert board.software == "L4T 36.9.9"


def test_a_container_that_hides_the_device_tree_still_has_the_release(tmp_path: Path) -> None:
    board = read_jetson({}, write_tree(tmp_path, {"etc/nv_tegra_release": R39}))
    assert board == Jetson("a Jetson", None, "39.2.0", "7.2")
    assert board.gpu is None


def test_without_the_release_file_the_package_of_jetson_linux_tells_it(tmp_path: Path) -> None:
    board = read_jetson({"nvidia-l4t-core": "36.5.0-20260115194252"}, write_tree(tmp_path, AGX_ORIN))
    assert board is not None
    assert (board.l4t, board.jetpack) == ("36.5.0", "6.2.2")


def test_a_board_of_which_nothing_but_the_chip_is_known_says_so(tmp_path: Path) -> None:
    board = read_jetson({}, write_tree(tmp_path, {"proc/device-tree/compatible": "nvidia,p2180\0nvidia,tegra210\0"}))
    assert board == Jetson("a Jetson", "tegra210", None, None)
    assert board.software == "L4T unknown"
    assert board.gpu is None


@pytest.mark.parametrize(
    "files",
    [
        {},
        {
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
        },
    ],
)
def test_other_machines_are_no_jetson(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_jetson({}, write_tree(tmp_path, files)) is None


def test_jetpacks_are_named_by_the_tensorrt_they_bring() -> None:
    assert jetpacks_with_tensorrt("10.3.0", "8.7") == "6.1 or 6.2"
    assert jetpacks_with_tensorrt("10.13.3.9", "11.0") == "7.0 or 7.1"
    assert jetpacks_with_tensorrt("10.16.2.10-1+cuda13.2", "8.7") == "7.2"
    assert jetpacks_with_tensorrt("10.15.1", "8.7") is None


@pytest.mark.parametrize("sm", ["8.9", None])
def test_a_gpu_that_is_on_no_jetson_has_no_jetpack(sm: str | None) -> None:
    assert jetpacks_with_tensorrt("10.3.0", sm) is None
