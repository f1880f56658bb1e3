"""The packages behind the TensorRT targets: found, new enough, or one line about what to install."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

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
        ("tensorrt", "tensorrt", "10.3.0.30"),
        ("tensorrt", "tensorrt", "10.16.2.10"),
        ("tensorrt", "tensorrt", "11.0.0"),
        ("tensorrt-rtx", "tensorrt_rtx", "1.7.1"),
    ],
)
def test_a_package_that_reads_the_graphs_in_one_of_their_forms_is_taken(
    monkeypatch: pytest.MonkeyPatch, target: str, module: str, version: str
) -> None:
    installed(monkeypatch, module, version)
    package = import_tensorrt(target)
    assert (package.target, package.trt.__name__, package.version) == (target, module, version)


def test_only_the_full_package_has_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "tensorrt", "11.0")
    installed(monkeypatch, "tensorrt_rtx", "1.7")
    assert (import_tensorrt("tensorrt").plugins, import_tensorrt("tensorrt-rtx").plugins) == (True, False)


def test_only_plans_of_rtx_would_allocate_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "tensorrt", "11.0")
    installed(monkeypatch, "tensorrt_rtx", "1.7")
    assert [import_tensorrt(target).allocates_in_runs for target in ("tensorrt", "tensorrt-rtx")] == [False, True]


@pytest.mark.parametrize(("calls", "takes_weights"), [(["parse"], False), (["parse", "load_initializer"], True)])
def test_weights_are_put_into_plans_by_a_parser_that_is_handed_them(
    monkeypatch: pytest.MonkeyPatch, calls: list[str], takes_weights: bool
) -> None:
    """TensorRT's is since 10.13 (onnx-tensorrt, "TensorRT 10.13 GA Parser Update")."""
    installed(monkeypatch, "tensorrt", "10.3.0.30")
    monkeypatch.setattr(sys.modules["tensorrt"], "OnnxParser", SimpleNamespace(**dict.fromkeys(calls)), raising=False)
    assert import_tensorrt("tensorrt").takes_weights == takes_weights


def test_an_older_one_is_refused_with_the_version_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "tensorrt", "8.6.2")
    with pytest.raises(TrolError) as refused:
        import_tensorrt("tensorrt")
    assert str(refused.value) == (
        "tensorrt 8.6.2 cannot read the graphs in any of their forms, expected 10.3 or newer: upgrade it"
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
