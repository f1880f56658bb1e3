"""Versions of installed packages, from their metadata."""

from __future__ import annotations

import sys

import pytest

from trol_runtime import installed_packages as module
from trol_runtime.installed_packages import PACKAGES, installed_packages, installed_version


def test_an_installed_package_has_a_version_and_a_missing_one_none() -> None:
    assert installed_version("numpy")
    assert installed_version("no-such-package") is None


def test_every_package_is_reported_and_a_missing_one_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_version", {"numpy": "2.0"}.get)
    assert installed_packages() == {**dict.fromkeys(PACKAGES), "numpy": "2.0"}


@pytest.mark.parametrize(("carrier", "package"), [("tensorrt-cu12", "tensorrt"), ("tensorrt-rtx-cu13", "tensorrt-rtx")])
def test_a_package_is_found_under_the_name_of_the_one_that_carries_it(
    monkeypatch: pytest.MonkeyPatch, carrier: str, package: str
) -> None:
    monkeypatch.setattr(module, "installed_version", {carrier: "10.3.0"}.get)
    assert installed_packages()[package] == "10.3.0"


def test_nothing_is_imported_to_learn_versions() -> None:
    before = set(sys.modules)
    installed_packages()
    assert not {"torch", "tensorrt", "tensorrt_rtx", "onnxruntime"} & (set(sys.modules) - before)
