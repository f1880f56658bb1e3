"""The released models' graphs from config alone: small files, every layer unrolled, little memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from golden.seeded_checkpoint import CONFIGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc: Linux only"),
]

# A process of its own, whose memory is sampled while it lowers all roles.
LOWER = """
import json, sys
from sampled_memory import SampledMemory
with SampledMemory() as memory:
    from emitted_graphs import ROLES, cpu_language, seeded_model, stored_graph
    config, _ = seeded_model(sys.argv[1])
    graphs = {role: stored_graph(config, role, "fp16") for role in ROLES} | {"cpu": cpu_language(config, "fp16")}
print(json.dumps({
    "peak_bytes": memory.peak_bytes,
    "graph_bytes": {name: graph.ByteSize() for name, graph in graphs.items()},
    "operators": {name: [node.op_type for node in graph.graph.node] for name, graph in graphs.items()},
    "nodes": {name: [node.name for node in graph.graph.node] for name, graph in graphs.items()},
}))
"""


@pytest.fixture(scope="module", params=["1.8b", "3.8b", "7b"])
def lowered(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The released config and what its lowering gave."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, "-c", LOWER, request.param]
    finished = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return CONFIGS[request.param], json.loads(finished.stdout)


def test_graphs_are_small(lowered: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, found = lowered
    assert max(found["graph_bytes"][role] for role in ("prefill", "extend")) < 5_000_000
    assert sum(found["graph_bytes"].values()) < 10_000_000


def test_lowering_needs_less_than_2_gb(lowered: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert lowered[1]["peak_bytes"] < 2_000_000_000


def test_every_layer_is_there_twice_for_prompts_and_once_in_decode(
    lowered: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    config, found = lowered
    layers = [str(layer) for layer in range(config["llm"]["num_hidden_layers"])]
    norm = r"model\.layers\.(\d+)\.(?:attention_norm|input_layernorm)/(?:second_pass/)?RMSNormalization$"

    def bodies(role: str) -> Counter[str]:
        return Counter(match[1] for name in found["nodes"][role] if (match := re.search(norm, name)))

    for role in ("prefill", "extend"):
        assert bodies(role) == dict.fromkeys(layers, 2)
        assert found["operators"][role].count("Mixer") == len(layers)
    assert bodies("decode") == dict.fromkeys(layers, 1)
    assert found["operators"]["vision"].count("Attention") == 24
