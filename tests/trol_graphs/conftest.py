"""Both official models, for every test of the graphs that compares with golden outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emitted_graphs import write_weights
from official_model import OfficialModel
from trol_export.checkpoint import Checkpoint


@pytest.fixture(scope="session", params=["internlm2", "phi3"])
def official(request: pytest.FixtureRequest) -> OfficialModel:
    """Each trunk in turn."""
    directory: Path = request.getfixturevalue(f"tiny_{request.param}")
    return OfficialModel(request.getfixturevalue(f"golden_{request.param}"), Checkpoint.open(directory))


@pytest.fixture(scope="session")
def onnx_folder(official: OfficialModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """precision -> a folder with the official model's weights.safetensors, written once."""
    written: dict[str, Path] = {}

    def folder(precision: str) -> Path:
        if precision not in written:
            directory = tmp_path_factory.mktemp(f"{official.golden.arch}-{precision}")
            written[precision] = write_weights(directory, official.config, precision, official.checkpoint.numpy)
        return written[precision]

    return folder
