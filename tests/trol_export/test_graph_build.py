"""The graphs of an engine: the manifest's interface is the graphs' own, whatever the precision, run after run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from trol_export.arena import plan_arena
from trol_export.graph_build import ROLES, build_graphs
from trol_export.weight_files import TensorInfo
from trol_graphs.model import expected_tensors
from trol_runtime.bundle import Bundle
from trol_runtime.cpu_backend import LANGUAGE_ENTRY, VISION_ENTRY
from trol_runtime.manifest import GraphValue

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
ENGINES = [(arch, precision) for arch in ("internlm2", "phi3") for precision in ("fp32", "fp16")]


def model_of(engine: Path, entry: str) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(Bundle.open(engine).read(entry))


def values_of(infos: list[onnx.ValueInfoProto]) -> list[GraphValue]:
    def shape(info: onnx.ValueInfoProto) -> tuple[int | str, ...]:
        return tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim)

    return [GraphValue(info.name, DTYPES[info.type.tensor_type.elem_type], shape(info)) for info in infos]


@pytest.mark.parametrize(("arch", "precision"), ENGINES)
def test_the_manifest_states_the_stored_graphs_own_inputs_and_outputs(
    micro_engine: Callable[..., Path], arch: str, precision: str
) -> None:
    engine = micro_engine(arch, precision)
    graphs = Bundle.open(engine).manifest.graphs
    assert tuple(sorted(graphs)) == tuple(sorted(ROLES))
    for role, stated in graphs.items():
        assert stated.entry == f"graphs/{role}.onnx"
        graph = model_of(engine, stated.entry).graph
        assert values_of(list(graph.input)) == list(stated.inputs)
        assert values_of(list(graph.output)) == list(stated.outputs)


@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_of_an_fp16_engine_the_stored_graphs_compute_in_fp16_and_the_cpus_in_fp32(
    micro_engine: Callable[..., Path], arch: str
) -> None:
    engine = micro_engine(arch, "fp16")
    stored = Bundle.open(engine).manifest.graphs["prefill"]
    assert {value.dtype for value in stored.inputs if value.name.startswith("past_key_values")} == {"float16"}
    for entry in (LANGUAGE_ENTRY, VISION_ENTRY):
        graph = model_of(engine, entry).graph
        floats = {value.dtype for value in values_of([*graph.input, *graph.output])} - {"int64", "bool"}
        assert floats == {"float32"}


@pytest.mark.parametrize(("arch", "precision"), ENGINES)
def test_graphs_find_each_weight_where_the_file_holds_it(
    micro_engine: Callable[..., Path], arch: str, precision: str
) -> None:
    bundle = Bundle.open(micro_engine(arch, precision))
    header_bytes = bundle.arena_offset - bundle.entries["weights.safetensors"].offset
    stored = {name: (header_bytes + tensor.offset, tensor.nbytes) for name, tensor in bundle.manifest.tensors.items()}
    seen: set[str] = set()
    for entry in [*(graph.entry for graph in bundle.manifest.graphs.values()), LANGUAGE_ENTRY, VISION_ENTRY]:
        for tensor in onnx.ModelProto.FromString(bundle.read(entry)).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                place = {item.key: item.value for item in tensor.external_data}
                assert place["location"] == "weights.safetensors"
                assert (int(place["offset"]), int(place["length"])) == stored[tensor.name]
                seen.add(tensor.name)
    assert seen == stored.keys()


def test_the_same_config_gives_the_same_graphs(micro_engine: Callable[..., Path]) -> None:
    bundle = Bundle.open(micro_engine("phi3", "fp16"))
    config = bundle.manifest.model
    layout = plan_arena(TensorInfo(name, "F16", shape) for name, shape in expected_tensors(config).items())
    offsets = {name: len(layout.header) + offset for name, offset in layout.offsets.items()}
    steps: list[str] = []

    def step(name: str) -> AbstractContextManager[None]:
        steps.append(name)
        return nullcontext()

    graphs = build_graphs(config, "fp16", offsets, step)
    assert graphs.roles == bundle.manifest.graphs
    assert graphs.entries == {entry: bundle.read(entry) for entry in graphs.entries}
    assert steps == ["trace vision", "trace prefill", "trace decode", "trace extend"]
