"""Reading the files of a system that may not have them."""

from __future__ import annotations

from pathlib import Path

from trol_runtime.system_files import text_of


def test_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert text_of(tmp_path / "etc/nv_tegra_release") == ""


def test_a_folder_in_the_place_of_a_file_is_empty(tmp_path: Path) -> None:
    assert text_of(tmp_path) == ""


def test_bytes_that_are_no_text_do_not_raise(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"Jetson\xff\0")
    assert text_of(tmp_path / "model") == "Jetson\ufffd\0"
