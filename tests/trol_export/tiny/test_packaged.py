"""--size tiny: the checkpoint inside the package, taken by the code that takes every other one, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trol_export import pipeline
from trol_export.checkpoint_check import check_checkpoint
from trol_export.tiny import packaged
from trol_runtime.bundle import Bundle


@pytest.fixture
def stand_in(trained_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of random weights in the place of the packaged one, and no way to the hub."""
    monkeypatch.setattr(packaged, "CHECKPOINT", trained_checkpoint)
    monkeypatch.setattr(pipeline, "fetch", lambda *_: pytest.fail("went to the hub"))
    return trained_checkpoint


@pytest.mark.parametrize("size", ["tiny", "TINY"])
def test_size_tiny_exports_the_packaged_checkpoint_without_a_network(
    trol_export: Callable[..., Any], stand_in: Path, tmp_path: Path, size: str
) -> None:
    engine = tmp_path / "engine.plan"
    ended = trol_export("--size", size, "-o", engine)
    assert ended.code == 0, ended.stderr
    manifest = Bundle.open(engine).manifest
    assert manifest.producer["checkpoint"] == {"package": "trol-export", "size": "tiny"}
    assert manifest.parity["verdict"] == "pass"


def test_a_revision_of_the_packaged_checkpoint_is_refused(
    trol_export: Callable[..., Any], stand_in: Path, tmp_path: Path
) -> None:
    ended = trol_export("--size", "tiny", "--revision", "v2", "-o", tmp_path / "engine.plan")
    assert ended.code == 2
    assert ended.stderr == ("trol-export: --revision v2 is for repositories of the hub, tiny comes with this package\n")


def test_an_installation_without_the_weights_says_how_to_get_them(
    trol_export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packaged, "CHECKPOINT", tmp_path / "checkpoint")
    ended = trol_export("--size", "tiny", "-o", tmp_path / "engine.plan")
    assert ended.code == 1
    assert ended.stderr == (
        f"trol-export: {tmp_path / 'checkpoint'} is missing, this installation comes without TroL-tiny's weights: "
        "train them with python -m trol_export.tiny.train, then give --checkpoint build/tiny/checkpoint\n"
    )


def test_the_packaged_checkpoint_can_be_exported_and_is_small() -> None:
    assert check_checkpoint(packaged.packaged_checkpoint()).deviations == []
    assert sum(path.stat().st_size for path in packaged.CHECKPOINT.iterdir()) <= 12_000_000
