"""Plans of the released models from their configs alone, without a GPU: small, and built in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="plans of the target tensorrt-rtx need the extra rtx")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc: Linux only"),
]

MOST_PLAN_BYTES = 40_000_000  # weights are inputs: what is left is code
MOST_MEMORY_BYTES = 1_500_000_000

# A process of its own, which receives the graph and builds one plan.
BUILD = """
import json, sys
from sampled_memory import SampledMemory
from trol_engines.plan_builder import build_plan
from trol_engines.plan_profile import ShapeRange
from trol_engines.tensorrt_package import import_tensorrt
graph_path, ranges = sys.argv[1], json.loads(sys.argv[2])
with SampledMemory() as memory:
    ranges = {name: ShapeRange(*map(tuple, shapes)) for name, shapes in ranges.items()}
    plan = build_plan(import_tensorrt("tensorrt-rtx"), open(graph_path, "rb").read(), ranges)
print(json.dumps({"peak_bytes": memory.peak_bytes, "plan_bytes": len(plan.plan), "types": plan.types}))
"""

# Another one writes the graph: what tracing needs does not count as the build's.
WRITE = """
import json, sys
from emitted_graphs import seeded_model, stored_graph
from trol_engines.plan_graph import as_bytes, fix_cache_length, read_graph, weights_to_inputs
from trol_engines.plan_profile import axis_ranges, shape_ranges
from trol_runtime.manifest import GraphValue, Limits
name, role, path = sys.argv[1:]
config, _ = seeded_model(name)
graph = read_graph(stored_graph(config, role, "fp16").SerializeToString())
limits = Limits(4096, 5)
fix_cache_length(graph, limits.max_seq)
shapes = {v.name: tuple(a if isinstance(a, int) else str(a.value) for a in v.shape) for v in graph.graph.inputs}
inputs = [GraphValue(name, "", shape) for name, shape in shapes.items()]
weights_to_inputs(graph)
open(path, "wb").write(as_bytes(graph))
print(json.dumps(shape_ranges(inputs, axis_ranges(role, config, limits), limits.max_seq)))
"""


def run(program: str, *arguments: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout)


@pytest.mark.parametrize("role", ["vision", "prefill", "decode", "extend"])
@pytest.mark.parametrize("size", ["1.8b", "3.8b", "7b"])
def test_a_plan_is_built_from_the_config_alone(tmp_path_factory: pytest.TempPathFactory, size: str, role: str) -> None:
    graph = tmp_path_factory.mktemp("graph") / f"{role}.onnx"
    ranges = run(WRITE, size, role, str(graph))
    built = run(BUILD, str(graph), json.dumps(ranges))
    assert built["plan_bytes"] <= MOST_PLAN_BYTES
    assert built["peak_bytes"] <= MOST_MEMORY_BYTES
    assert "HALF" in built["types"]["matrix products"]
