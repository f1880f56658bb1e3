"""The packages behind the TensorRT targets: found, new enough, or one line about what to install."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from trol_engines.tensorrt_package import import_tensorrt
from trol_runtime.errors import MissingExtraError, TrolError, UsageError


def installed(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    """A package of this name and version, and nothing else of it."""
    module = ModuleType(name)
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("target", "module", "version"),
    [
        ("tensorrt", "tensorrt", "10.16.2.10"),
        ("tensorrt", "tensorrt", "11.0.0"),
        ("tensorrt-rtx", "tensorrt_rtx", "1.7.1"),
    ],
)
def test_a_package_that_reads_opset_24_is_taken(
    monkeypatch: pytest.MonkeyPatch, target: str, module: str, version: str
) -> None:
    installed(monkeypatch, module, version)
    package = import_tensorrt(target)
    assert (package.target, package.trt.__name__, package.version) == (target, module, version)


def test_only_the_full_package_has_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "tensorrt", "11.0")
    installed(monkeypatch, "tensorrt_rtx", "1.7")
    assert (import_tensorrt("tensorrt").plugins, import_tensorrt("tensorrt-rtx").plugins) == (True, False)


def test_an_older_one_is_refused_with_the_version_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "tensorrt", "10.3.0.30")
    with pytest.raises(TrolError) as refused:
        import_tensorrt("tensorrt")
    assert str(refused.value) == (
        "tensorrt 10.3.0.30 cannot read the graphs (opset 24), expected 10.15 or newer: upgrade it"
    )


@pytest.mark.parametrize(
    ("target", "module", "extra"), [("tensorrt", "tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")]
)
def test_a_missing_package_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, target: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as refused:
        import_tensorrt(target)
    assert str(refused.value) == (
        f"building {target} plans needs {module}, not installed here; install with: pip install 'trol-export[{extra}]'"
    )


def test_another_target_is_refused() -> None:
    with pytest.raises(UsageError, match="no TensorRT target 'cpu', expected tensorrt or tensorrt-rtx"):
        import_tensorrt("cpu")
