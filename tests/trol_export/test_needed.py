"""What a command needs, asked for before it begins: modules with the pip command, Python first."""

from __future__ import annotations

import platform

import pytest

from trol_export.needed import require_installed
from trol_runtime.errors import MissingExtraError, TrolError


def test_what_is_there_is_enough() -> None:
    require_installed("exporting", ("json", "numpy"), "export,cpu")


def test_all_that_is_missing_is_listed_with_the_pip_command() -> None:
    with pytest.raises(MissingExtraError) as refused:
        require_installed("training", ("no_such_module", "json", "nor_this"), "export,bench")
    assert str(refused.value) == (
        "training needs no_such_module, nor_this, not installed here; install with: "
        "pip install 'trol-export[export,bench]'"
    )


def test_a_python_that_exports_nothing_is_told_so_and_not_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.12")
    with pytest.raises(TrolError) as refused:
        require_installed("exporting", ("no_such_module",), "export,cpu")
    assert str(refused.value) == (
        "exporting needs Python 3.11 or newer, this is 3.10.12; do it on another machine and copy the file here"
    )


@pytest.mark.parametrize("extras", ["tensorrt", "rtx"])
def test_plans_are_built_on_an_older_python(monkeypatch: pytest.MonkeyPatch, extras: str) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.12")
    require_installed("building plans", ("json",), extras)
