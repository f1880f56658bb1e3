"""`polygraphy run`, another program than ours, takes every stored graph as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emitted_graphs import ROLES, seeded_model, stored_graph, write_weights
from trol_graphs.graph_io import Role, graph_inputs
from trol_runtime.model_config import ModelConfig

POLYGRAPHY = Path(sys.executable).with_name("polygraphy")
pytestmark = pytest.mark.skipif(not POLYGRAPHY.exists(), reason="polygraphy comes with the dev extra")

SIZES = {"crops": 2, "sequence_length": 9, "image_tokens": 4, "cache_length": 40, "batch": 3}
# Polygraphy draws the inputs: token ids and write indices have to stay inside the vocabulary and the cache.
RANGES = ["token_ids:[3,99]", "input_ids:[3,99]", "write_index:[0,31]"]


@pytest.fixture(scope="module", params=["micro-internlm2", "micro-phi3"])
def onnx_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, Path]:
    """The graphs beside their weights, as `trol-export --onnx-dir` leaves them."""
    config, read = seeded_model(request.param)
    folder = write_weights(tmp_path_factory.mktemp(request.param), config, "fp32", read)
    for role in ROLES:
        (folder / f"{role}.onnx").write_bytes(stored_graph(config, role).SerializeToString())
    return config, folder


@pytest.mark.parametrize("role", ROLES)
def test_polygraphy_runs_the_graph_with_onnxruntime(onnx_folder: tuple[ModelConfig, Path], role: Role) -> None:
    config, folder = onnx_folder
    shapes = [
        f"{port.name}:[{','.join(str(SIZES[size] if isinstance(size, str) else size) for size in port.shape)}]"
        for port in graph_inputs(role, config)
    ]
    names = {port.name for port in graph_inputs(role, config)}
    ranges = [text for text in RANGES if text.split(":")[0] in names]
    program = [str(POLYGRAPHY), "run", str(folder / f"{role}.onnx"), "--onnxrt"]
    program += ["--input-shapes", *shapes, "--validate"]  # validate: no NaN, no infinity
    if ranges:
        program += ["--val-range", "[-1,1]", *ranges]
    finished = subprocess.run(program, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert "PASSED" in finished.stdout
