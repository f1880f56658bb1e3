"""Versions of installed packages, from their metadata."""

from __future__ import annotations

import sys

import pytest

from trol_runtime import installed_packages as module
from trol_runtime.installed_packages import PACKAGES, cuda_majors, installed_packages, installed_version


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


def test_what_carries_a_package_counts_more_than_its_name_which_a_system_may_have_in_another_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "installed_version", {"tensorrt": "10.3.0.30", "tensorrt-cu13": "11.4.1.36"}.get)
    assert installed_packages()["tensorrt"] == "11.4.1.36"


# As the wheels of 1.26, 1.27 and 1.31 on the package index have it.
@pytest.mark.parametrize(
    ("runtime", "major"),
    [("nvidia-cuda-runtime-cu12~=12.0", 12), ("nvidia-cuda-runtime-cu13~=13.0", 13), ("nvidia-cuda-runtime~=13.0", 13)],
)
def test_onnxruntime_gpu_is_built_for_the_cuda_whose_runtime_it_requires(
    monkeypatch: pytest.MonkeyPatch, runtime: str, major: int
) -> None:
    required = {"onnxruntime-gpu": ["numpy>=1.21.6", f'{runtime}; extra == "cuda"', "nvidia-cufft~=12.0"]}
    monkeypatch.setattr(module, "installed_version", {"onnxruntime-gpu": "1.31.1"}.get)
    monkeypatch.setattr(module, "requires", required.get)
    assert cuda_majors() == {"onnxruntime-gpu": major}


def test_tensorrt_tells_its_cuda_by_the_name_of_its_carrier_and_the_bindings_by_their_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    carriers = {"tensorrt-rtx-cu12": "1.7.1.116", "tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0"}
    versions = {**carriers, "cuda-bindings": "12.9.10"}
    monkeypatch.setattr(module, "installed_version", versions.get)
    monkeypatch.setattr(module, "requires", {}.get)
    assert cuda_majors() == {"cuda-bindings": 12, "tensorrt": 13, "tensorrt-rtx": 12}


def test_a_tensorrt_that_came_with_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_version", {"tensorrt": "10.3.0"}.get)
    monkeypatch.setattr(module, "requires", {}.get)
    assert cuda_majors() == {}


def test_nothing_is_imported_to_learn_versions() -> None:
    before = set(sys.modules)
    installed_packages()
    cuda_majors()
    assert not {"torch", "tensorrt", "tensorrt_rtx", "onnxruntime"} & (set(sys.modules) - before)
