"""Plans of the released models from their configs alone, without a GPU: small, and built in little memory.

Each test prints what it found: `pytest -m slow -s` on this file. The seconds of every build, 60 at most, are not
asserted, as they say as much of the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trol_runtime.manifest import Opset

pytest.importorskip("tensorrt_rtx", reason="plans of the target tensorrt-rtx need the extra rtx")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc: Linux only"),
]

ROLES = ("vision", "prefill", "decode", "extend")
SIZES = ("1.8b", "3.8b", "7b")
MOST_PLAN_BYTES = 40_000_000  # weights are inputs: what is left is code
# A file for the CPU and RTX: the weights once, and beside them a hundredth of them and 80 MB.
SHARE_OF_WEIGHTS, BYTES_BESIDE = 0.01, 80_000_000
# Of these what cannot be counted without a checkpoint, a few MB: the tokenizer and the manifest.
UNCOUNTED_BYTES = 8_000_000
MOST_MEMORY_BYTES = 1_500_000_000

# A process of its own, which receives the graph and builds one plan.
BUILD = """
import json, sys, time
from sampled_memory import SampledMemory
from trol_engines.plan_builder import build_plan
from trol_engines.plan_profile import ShapeRange
from trol_engines.tensorrt_package import import_tensorrt
graph_path, ranges = sys.argv[1], json.loads(sys.argv[2])
begin = time.perf_counter()
with SampledMemory() as memory:
    ranges = {name: ShapeRange(*map(tuple, shapes)) for name, shapes in ranges.items()}
    plan = build_plan(import_tensorrt("tensorrt-rtx"), open(graph_path, "rb").read(), ranges)
seconds = time.perf_counter() - begin
found = {"peak_bytes": memory.peak_bytes, "plan_bytes": len(plan.plan), "seconds": seconds, "types": plan.types}
print(json.dumps(found))
"""

# Another one writes the graph: what tracing needs does not count as the build's.
WRITE = """
import json, sys
from emitted_graphs import seeded_model, stored_graph
from trol_engines.plan_graph import as_bytes, input_values, plan_graph, weights_to_inputs
from trol_engines.plan_profile import axis_ranges, shape_ranges
from trol_runtime.manifest import Limits
name, role, opset, path = sys.argv[1:]
config, _ = seeded_model(name)
limits = Limits(4096, 5)
graph = plan_graph(stored_graph(config, role, "fp16").SerializeToString(), limits.max_seq, opset)
weights_to_inputs(graph)
open(path, "wb").write(as_bytes(graph))
print(json.dumps(shape_ranges(input_values(graph), axis_ranges(role, config, limits))))
"""

# What else is in a file: the arena, by the shapes of the model, the stored graphs and those for the CPU.
COUNT = """
import json, sys
import onnx_ir as ir
from emitted_graphs import ROLES, cpu_language, layout, lowered, seeded_model, stored_graph
config, _ = seeded_model(sys.argv[1])
arena = layout(config, "fp16")
graphs = [stored_graph(config, role, "fp16") for role in ROLES]
cpu = [cpu_language(config, "fp16"), ir.to_proto(lowered(config, "vision", "fp16", ir.DataType.FLOAT))]
found = {"arena": len(arena.header) + arena.data_bytes, "graphs": [one.ByteSize() for one in (*graphs, *cpu)]}
print(json.dumps(found))
"""


def run(program: str, *arguments: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout)


def built_plan(folder: Path, size: str, role: str, opset: Opset) -> Any:
    """What BUILD found, of one plan within the bounds."""
    graph = folder / f"{role}.onnx"
    ranges = run(WRITE, size, role, opset, str(graph))
    built = run(BUILD, str(graph), json.dumps(ranges))
    megabytes, gigabytes = built["plan_bytes"] / 1e6, built["peak_bytes"] / 1e9
    print(f"{size:<5} {opset:<6} {role:<8} {megabytes:5.1f} MB  {built['seconds']:5.1f} s  {gigabytes:.2f} GB")
    assert built["plan_bytes"] <= MOST_PLAN_BYTES
    assert built["peak_bytes"] <= MOST_MEMORY_BYTES
    assert "HALF" in built["types"]["matrix products"]
    return built


@pytest.mark.parametrize("size", SIZES)
def test_the_plans_of_all_roles_are_built_from_the_config_alone_and_a_file_stays_small(
    tmp_path: Path, size: str
) -> None:
    plans = [built_plan(tmp_path, size, role, "modern")["plan_bytes"] for role in ROLES]
    counted = run(COUNT, size)
    weights, beside = counted["arena"], sum(plans) + sum(counted["graphs"])
    print(f"{size:<5} weights {weights / 1e6:.1f} MB, beside them {beside / 1e6:.1f} MB")
    assert beside + UNCOUNTED_BYTES <= SHARE_OF_WEIGHTS * weights + BYTES_BESIDE


@pytest.mark.parametrize("role", ["extend", "decode"])
def test_legacy_plans_are_built_from_the_config_alone(tmp_path: Path, role: str) -> None:
    """Those of JetPack 6; RTX reads opset 17, too, and needs no GPU to build them."""
    assert "KV cache" not in built_plan(tmp_path, "1.8b", role, "legacy")["types"]
