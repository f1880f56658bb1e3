"""What every emitted graph is, whatever the sizes: operators, names, weights, shapes.

Micro and distinct configs differ in layer counts, so that a count written in terms of layers is held to it.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference
from onnx.checker import check_model

from emitted_graphs import (
    DISTINCT,
    PRECISIONS,
    ROLES,
    WEIGHTS,
    all_nodes,
    attributes,
    cpu_language,
    external,
    file_offsets,
    seeded_model,
    stored_graph,
    subgraphs,
    weight_initializers,
    write_weights,
)
from trol_export.graph_build import build_graphs
from trol_graphs.graph_io import Port, Role, graph_inputs, graph_outputs
from trol_graphs.model import expected_tensors
from trol_runtime.model_config import ModelConfig

MODELS: list[Any] = ["micro-internlm2", "micro-phi3", *DISTINCT.values()]
SYMBOLS = {"crops", "sequence_length", "batch", "image_tokens", "cache_length"}
VISION_PREFIXES = ("vit.", "vision_model.", "vision_proj.")
PROMPT_ROLES: tuple[Role, ...] = ("prefill", "extend")  # every layer twice, then the mixer


@pytest.fixture(scope="module", params=MODELS, ids=["micro-internlm2", "micro-phi3", *DISTINCT])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return seeded_model(request.param)[0]


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> Role:
    return request.param


def emitted(config: ModelConfig, precision: str) -> Iterator[tuple[str, ModelProto]]:
    """Every language and vision graph that goes into an engine."""
    for role in ROLES:
        yield role, stored_graph(config, role, precision)
    yield "cpu", cpu_language(config, precision)


# Operators


def expected_operators(config: ModelConfig, role: Role, precision: str) -> Counter[str]:
    """The op inventory: what each part of a role is made of, times how often the role holds it."""
    layers, internlm2 = config.decoder.layers, config.arch == "internlm2"
    fp16 = int(precision == "fp16")
    counts: Counter[str] = Counter()

    def add(times: int, **operators: int) -> None:
        counts.update({name: times * count for name, count in operators.items() if times * count})

    # q, k and v heads first; attended heads side by side again
    attention = {"Attention": 1, "Transpose": 4, "Reshape": 4}
    if role == "vision":
        tower = config.vision.layers
        # Conv; patches flattened, channels last; the class token repeated for every crop; positions added
        add(1, Conv=1, Cast=fp16, Reshape=1, Transpose=1, Shape=1, Expand=1, Concat=2, Add=1)
        # tokens flat for the layers, by crop again to drop the class token; the last Reshape is image_embeds
        add(1, Reshape=3, Slice=1)
        add(tower, **attention, Add=2, LayerNormalization=2)
        if internlm2:
            add(1, Reshape=2, LayerNormalization=1, Gemm=2, Gelu=1)  # class token as a row, flat features; projector
            add(tower, Gemm=6, Mul=2, Sigmoid=1)  # q, k, v, out, fc1, fc2; x * sigmoid(1.702 x)
        else:
            add(1, Reshape=2, Transpose=1, LayerNormalization=1, Gemm=2, Gelu=1)  # pixel shuffle; projector
            add(tower, Gemm=4, Split=1, Gelu=1, Mul=2)  # qkv, proj, fc1, fc2; ls1, ls2
        return counts
    bodies = 2 * layers if role in PROMPT_ROLES else layers
    if internlm2:
        attention["Reshape"] += 1  # wqkv's rows by group
        add(bodies, Gemm=5, Split=1, Mul=2)  # wqkv, wo, w1, w2, w3; q | k | v; silu(w1 x) * w3 x
        if role in PROMPT_ROLES:
            add(5 * bodies, Gemm=2, Mul=1, Add=1)  # partial LoRA: lora_A, mask, lora_B, sum
    else:
        attention["Reshape"] += 1  # qkv_proj's rows by head
        add(bodies, Gemm=4, Split=2, Mul=2)  # qkv, o, gate_up, down; q | k | v and gate | up
    add(bodies, **attention, RMSNormalization=2, RotaryEmbedding=2, Sigmoid=1, Add=2)
    add(bodies, Cast=4 * fp16)  # rotary tables are fp32 at every precision
    # keys and values: of both passes in extend, elsewhere of the first alone
    add(bodies if role == "extend" else layers, TensorScatter=2)
    add(1, Gather=1, RMSNormalization=1, Gemm=1, Cast=fp16)  # embedding; final norm, head, fp32 logits
    if role in PROMPT_ROLES:
        add(layers, Mixer=1)
        # image token number j takes row j of image_embeds; the last position alone reaches the head
        add(1, Reshape=1, Equal=1, Cast=1, CumSum=1, Sub=1, Max=1, Unsqueeze=1, Gather=1, Where=1, Slice=1)
        add(1, Cast=int(internlm2))  # the image mask of partial LoRA, as a factor
    return counts


def test_a_graph_is_made_of_these_operators_and_no_others(config: ModelConfig, role: Role, precision: str) -> None:
    found = Counter(node.op_type for node in stored_graph(config, role, precision).graph.node)
    assert found == expected_operators(config, role, precision)


def test_opset_is_24_and_the_mixer_has_a_domain_of_its_own(config: ModelConfig, precision: str) -> None:
    for name, model in emitted(config, precision):
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": 24, "trol": 1}
        assert model.ir_version == 12, name


def test_role_graphs_are_flat(config: ModelConfig, role: Role, precision: str) -> None:
    """No If, Loop or Scan and no sequences: traversal is unrolled."""
    model = stored_graph(config, role, precision)
    assert len(list(subgraphs(model.graph))) == 1
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    assert {value.type.WhichOneof("value") for value in values} == {"tensor_type"}


def test_the_one_local_function_is_the_mixer_of_graphs_that_traverse(config: ModelConfig, precision: str) -> None:
    functions = {name: [f"{f.domain}::{f.name}" for f in model.functions] for name, model in emitted(config, precision)}
    mixer = ["trol::Mixer"]
    assert functions == {"vision": [], "prefill": mixer, "decode": [], "extend": mixer, "cpu": mixer}


def test_every_linear_is_a_gemm_on_the_checkpoint_s_own_matrix(config: ModelConfig, role: Role, precision: str) -> None:
    model = stored_graph(config, role, precision)
    weights = weight_initializers(model)
    for node in model.graph.node:
        if node.op_type == "Gemm":
            assert attributes(node) == {"transB": 1}, node.name
            assert node.input[1] in weights, node.name
            assert set(node.input[2:]) <= weights.keys(), node.name
    for name, readers in consumers(model).items():
        if name in weights and len(weights[name].dims) == 2:
            allowed = {("Gemm", 1), ("Gather", 0), ("Mixer", 2)}
            if name.endswith("position_embedding.weight"):
                allowed = {("Add", 1)}
            assert {(node.op_type, index) for node, index in readers} <= allowed, name


def test_causal_and_mask_or_lengths_never_meet(config: ModelConfig, precision: str) -> None:
    """They are aligned differently by different runtimes: bottom-right here, upper-left there."""
    for name, model in emitted(config, precision):
        for node in all_nodes(model):
            if node.op_type != "Attention":
                continue
            extra = [value for value in node.input[3:] if value]  # mask, past key, past value, lengths
            if attributes(node)["is_causal"]:
                assert not extra, f"{name}: {node.name}"
            else:
                assert len(extra) <= 1, f"{name}: {node.name}"  # the mask alone


def attentions(config: ModelConfig, role: Role) -> list[NodeProto]:
    return [node for node in stored_graph(config, role).graph.node if node.op_type == "Attention"]


def test_a_prompt_attends_causally_to_itself_and_a_picture_to_all_of_itself(config: ModelConfig) -> None:
    causal: dict[Role, int] = {"prefill": 1, "vision": 0}
    for role, is_causal in causal.items():
        for node in attentions(config, role):
            assert (attributes(node)["is_causal"], len(node.input)) == (is_causal, 3)


def test_decode_and_extend_attend_by_mask_to_the_caches_they_have_just_written(config: ModelConfig) -> None:
    """In extend the first pass to the first pass's keys and values, the second pass to the second's."""
    passes: dict[Role, list[str]] = {"decode": ["present"], "extend": ["present", "present_second_pass"]}
    for role, caches in passes.items():
        places = [f"{cache}.{layer}" for layer in range(config.decoder.layers) for cache in caches]
        for node, place in zip(attentions(config, role), places, strict=True):
            assert attributes(node)["is_causal"] == 0
            assert list(node.input[1:]) == [f"{place}.key", f"{place}.value", "attention_mask"]


# Traversal


def layer_bodies(model: ModelProto) -> Counter[str]:
    """How often a layer's first norm stands in the graph, by layer."""
    pattern = re.compile(r"model\.layers\.(\d+)\.(?:attention_norm|input_layernorm)/(?:second_pass/)?RMSNormalization$")
    return Counter(match[1] for node in model.graph.node if (match := pattern.search(node.name)))


def test_traversal_is_unrolled_two_bodies_a_layer_for_prompts_one_in_decode(
    config: ModelConfig, precision: str
) -> None:
    layers = [str(layer) for layer in range(config.decoder.layers)]
    for role in PROMPT_ROLES:
        assert layer_bodies(stored_graph(config, role, precision)) == dict.fromkeys(layers, 2)
    assert layer_bodies(stored_graph(config, "decode", precision)) == dict.fromkeys(layers, 1)


@pytest.mark.parametrize("role", PROMPT_ROLES)
def test_both_passes_read_the_same_weights(config: ModelConfig, role: Role) -> None:
    readers = consumers(stored_graph(config, role))
    for name in expected_tensors(config):
        if ".layers." in name and not name.startswith(VISION_PREFIXES):
            (first, _), (second, _) = readers[name]
            assert ("/second_pass/" in first.name, "/second_pass/" in second.name) == (False, True), name


def cache_writes(config: ModelConfig, role: Role) -> list[NodeProto]:
    return [node for node in stored_graph(config, role).graph.node if node.op_type == "TensorScatter"]


def test_prefill_and_decode_cache_the_first_pass_alone(config: ModelConfig) -> None:
    names = [f"{layer}.{part}" for layer in range(config.decoder.layers) for part in ("key", "value")]
    indices: dict[Role, list[str]] = {"prefill": [], "decode": ["write_index"]}
    for role, index in indices.items():
        written = cache_writes(config, role)
        assert not [node.name for node in written if "second_pass" in node.name]
        assert [([node.input[0], *node.input[2:]], node.output[0]) for node in written] == [
            ([f"past_key_values.{name}", *index], f"present.{name}") for name in names
        ]


def test_extend_caches_each_pass_apart(config: ModelConfig) -> None:
    """What the second pass computes goes to the second pass's caches and to no others."""
    written = cache_writes(config, "extend")
    for past, present, second in (
        ("past_key_values", "present", False),
        ("past_second_pass", "present_second_pass", True),
    ):
        of_pass = [node for node in written if ("/second_pass/" in node.name) == second]
        names = [f"{layer}.{part}" for layer in range(config.decoder.layers) for part in ("key", "value")]
        assert [(node.input[0], node.input[2], node.output[0]) for node in of_pass] == [
            (f"{past}.{name}", "write_index", f"{present}.{name}") for name in names
        ]


def test_every_written_cache_is_an_output_of_its_graph(config: ModelConfig, precision: str) -> None:
    """So that a runtime can bind it in place; tensorrt-rtx refuses a TensorScatter whose result is not an output."""
    for name, model in emitted(config, precision):
        for graph in subgraphs(model.graph):
            written = {node.output[0] for node in graph.node if node.op_type == "TensorScatter"}
            assert written <= {value.name for value in graph.output}, f"{name}: {graph.name}"


@pytest.mark.parametrize("role", PROMPT_ROLES)
def test_the_mixer_blends_the_two_passes_with_the_one_gate(config: ModelConfig, role: Role) -> None:
    mixers = [node for node in stored_graph(config, role).graph.node if node.op_type == "Mixer"]
    assert len(mixers) == config.decoder.layers
    for layer, node in enumerate(mixers):
        passes = [f"layers.{layer}.first_pass", f"layers.{layer}.second_pass"]
        assert list(node.input) == [*passes, "trol_gating.weight", "trol_gating.bias"]
        assert list(node.output) == [f"layers.{layer}.output"]


# Weights


def consumers(model: ModelProto) -> dict[str, list[tuple[NodeProto, int]]]:
    """value -> the nodes that read it, and as which input."""
    readers: dict[str, list[tuple[NodeProto, int]]] = {}
    for graph in subgraphs(model.graph):
        for node in graph.node:
            for index, name in enumerate(node.input):
                readers.setdefault(name, []).append((node, index))
    return readers


def weights_of(config: ModelConfig, role: Role) -> set[str]:
    """The checkpoint tensors a role computes with."""
    every = set(expected_tensors(config))
    vision = {name for name in every if name.startswith(VISION_PREFIXES)}
    if role == "vision":
        return vision
    if role in PROMPT_ROLES:
        return every - vision
    return {name for name in every - vision if ".lora_" not in name and not name.startswith("trol_gating.")}


def test_a_role_refers_to_the_weights_it_needs_and_reads_each(config: ModelConfig, role: Role, precision: str) -> None:
    model = stored_graph(config, role, precision)
    names = [tensor.name for tensor in model.graph.initializer if external(tensor)]
    assert sorted(names) == sorted(weights_of(config, role))
    assert set(names) <= consumers(model).keys()


def test_every_weight_lies_in_the_file_once_and_all_graphs_agree_where(config: ModelConfig, precision: str) -> None:
    offsets, shapes = file_offsets(config, precision), expected_tensors(config)
    bytes_per_value = {"fp32": 4, "fp16": 2}[precision]
    for _, model in emitted(config, precision):
        for name, tensor in weight_initializers(model).items():
            length = int(np.prod(shapes[name])) * bytes_per_value
            place = {"location": WEIGHTS, "offset": str(offsets[name]), "length": str(length)}
            assert external(tensor) == place, name
            assert tuple(tensor.dims) == shapes[name]
    assert len(set(offsets.values())) == len(shapes)


def test_weights_are_never_loaded_and_constants_are_small(config: ModelConfig, precision: str) -> None:
    """Graphs come from shapes alone: no file with that name exists, and what is stored inline is a few numbers."""
    for name, model in emitted(config, precision):
        for graph in subgraphs(model.graph):
            for tensor in graph.initializer:
                if tensor.data_location == TensorProto.EXTERNAL:
                    assert not tensor.raw_data, f"{name}: {tensor.name}"
                else:
                    assert tensor.name.startswith("const."), f"{name}: {tensor.name}"
                    assert tensor.ByteSize() < 200, f"{name}: {tensor.name}"


def test_fp32_graphs_hold_no_casts_of_weights(config: ModelConfig) -> None:
    for _, model in emitted(config, "fp32"):
        weights = weight_initializers(model)
        assert not [node.name for node in all_nodes(model) if node.op_type == "Cast" and node.input[0] in weights]


# Names and shapes


def test_names_are_unique_and_come_from_the_model(config: ModelConfig, precision: str) -> None:
    for name, model in emitted(config, precision):
        nodes = [node for graph in subgraphs(model.graph) for node in graph.node]
        values = [value for node in nodes for value in node.output]
        values += [value.name for value in model.graph.input] + [tensor.name for tensor in model.graph.initializer]
        for names in ([node.name for node in nodes], values):
            assert not [found for found, count in Counter(names).items() if count > 1], name
            assert all(names), name
            assert not [found for found in names if found.startswith("_") or "nn_module" in found], name


def test_values_people_ask_for_have_their_names(config: ModelConfig) -> None:
    layers = range(config.decoder.layers)
    parts = ("first_pass", "second_pass", "output")
    of_prompts = {"inputs_embeds"} | {f"layers.{layer}.{part}" for layer in layers for part in parts}
    expected = {
        "vision": {"vision.last_hidden", "vision.features"},
        "prefill": of_prompts,
        "decode": {f"layers.{layer}.output" for layer in layers},
        "extend": of_prompts,
    }
    for role in ROLES:
        made = {value for node in stored_graph(config, role).graph.node for value in node.output}
        assert expected[role] <= made, role


PRINT_DIGESTS = """
import hashlib
from emitted_graphs import PRECISIONS, ROLES, cpu_language, seeded_model, stored_graph
config, _ = seeded_model({name!r})
for precision in PRECISIONS:
    models = [stored_graph(config, role, precision) for role in ROLES] + [cpu_language(config, precision)]
    print(*(hashlib.sha256(m.SerializeToString(deterministic=True)).hexdigest() for m in models), sep="\\n")
"""


def test_another_process_with_another_hash_seed_emits_the_same_bytes() -> None:
    name = "micro-internlm2"
    ours = [
        hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        for precision in PRECISIONS
        for _, model in emitted(seeded_model(name)[0], precision)
    ]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, "-c", PRINT_DIGESTS.format(name=name)]
    theirs = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert theirs.stdout.split() == ours


def port_of(value: Any, compute: int) -> Port:
    """A graph's input or output in the words of graph_io; `compute` is the type that counts as the graph's own."""
    kinds = {TensorProto.INT64: "int64", TensorProto.BOOL: "bool", TensorProto.FLOAT: "float32", compute: "compute"}
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return Port(value.name, kinds[tensor.elem_type], shape)  # type: ignore[arg-type]


def test_inputs_and_outputs_are_the_documented_ones(config: ModelConfig, role: Role) -> None:
    graph = stored_graph(config, role, "fp16").graph  # in fp16 the compute type differs from what is always fp32
    assert [port_of(value, TensorProto.FLOAT16) for value in graph.input] == graph_inputs(role, config)
    assert [port_of(value, TensorProto.FLOAT16) for value in graph.output] == graph_outputs(role, config)


def test_the_interface_of_a_small_model_in_full() -> None:
    config, _ = seeded_model("micro-internlm2")
    cache = "float16[{},2,cache_length,8]"
    caches = ("0.key", "0.value", "1.key", "1.value")
    found = {role: described(config, role) for role in ROLES}
    assert found["vision"] == {"pixel_values": "float32[crops,3,16,16]", "image_embeds": "float16[crops,16,32]"}
    assert found["prefill"] == {
        "input_ids": "int64[1,sequence_length]",
        "image_embeds": "float16[image_tokens,32]",
        "cos": "float32[1,sequence_length,4]",
        "sin": "float32[1,sequence_length,4]",
        **{f"past_key_values.{name}": cache.format(1) for name in caches},
        "logits": "float32[1,320]",
        **{f"present.{name}": cache.format(1) for name in caches},
    }
    assert found["decode"] == {
        "token_ids": "int64[batch]",
        "cos": "float32[batch,1,4]",
        "sin": "float32[batch,1,4]",
        "write_index": "int64[batch]",
        "attention_mask": "bool[batch,1,1,cache_length]",
        **{f"past_key_values.{name}": cache.format("batch") for name in caches},
        "logits": "float32[batch,320]",
        **{f"present.{name}": cache.format("batch") for name in caches},
    }
    assert found["extend"] == {
        **found["prefill"],
        "write_index": "int64[1]",
        "attention_mask": "bool[1,1,sequence_length,cache_length]",
        **{f"past_second_pass.{name}": cache.format(1) for name in caches},
        **{f"present_second_pass.{name}": cache.format(1) for name in caches},
    }


def described(config: ModelConfig, role: Role) -> dict[str, str]:
    graph = stored_graph(config, role, "fp16").graph
    return {value.name: written(value) for value in [*graph.input, *graph.output]}


def written(value: Any) -> str:
    tensor = value.type.tensor_type
    dims = ",".join(str(dim.dim_param or dim.dim_value) for dim in tensor.shape.dim)
    return f"{np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name}[{dims}]"


def test_axes_are_named_in_the_words_of_the_interface(config: ModelConfig, role: Role, precision: str) -> None:
    """Inner shapes too: "17*crops", never torch's s0."""
    graph = stored_graph(config, role, precision).graph
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            words = set(re.findall(r"[A-Za-z_]\w*", dim.dim_param))
            assert words <= SYMBOLS, f"{value.name}: {dim.dim_param}"


@pytest.mark.parametrize("name", ["micro-internlm2", "micro-phi3"])
def test_the_checker_accepts_every_graph_with_full_shape_inference(name: str, precision: str, tmp_path: Path) -> None:
    config, _ = seeded_model(name)
    write_weights(tmp_path, config, precision, lambda tensor: np.zeros(expected_tensors(config)[tensor], np.float32))
    for graph, model in emitted(config, precision):
        path = tmp_path / f"{graph}.onnx"
        path.write_bytes(model.SerializeToString())
        check_model(path, full_check=True)


def test_inferred_shapes_agree_with_the_stated_ones(config: ModelConfig, role: Role) -> None:
    stated = stored_graph(config, role)
    bare = ModelProto.FromString(stated.SerializeToString())
    del bare.graph.value_info[:]
    inferred = shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    shapes = {value.name: value.type.tensor_type for value in inferred.graph.value_info}
    compared = 0
    for value in stated.graph.value_info:
        if value.name not in shapes or not value.type.tensor_type.HasField("shape"):
            continue
        ours, theirs = value.type.tensor_type, shapes[value.name]
        assert ours.elem_type == theirs.elem_type, value.name
        assert len(ours.shape.dim) == len(theirs.shape.dim), value.name
        for a, b in zip(ours.shape.dim, theirs.shape.dim, strict=True):
            if a.HasField("dim_value") and b.HasField("dim_value"):
                assert a.dim_value == b.dim_value, value.name
                compared += 1
    assert compared > len(stated.graph.node)  # more than one known axis a node: inference did not give up early


def test_the_exporter_puts_exactly_these_graphs_into_the_engine() -> None:
    precision = "fp16"  # where stored graphs and CPU form differ
    config, _ = seeded_model("micro-phi3")
    built = build_graphs(config, precision, file_offsets(config, precision), lambda _: nullcontext())
    for role in ROLES:
        assert ModelProto.FromString(built.entries[f"graphs/{role}.onnx"]) == stored_graph(config, role, precision)
    assert ModelProto.FromString(built.entries["plans/cpu/model.onnx"]) == cpu_language(config, precision)


def test_the_micro_and_distinct_configs_differ_in_layers() -> None:
    """Else a count in terms of layers would be a number."""
    decoders, towers = zip(*((c.decoder.layers, c.vision.layers) for c, _ in map(seeded_model, MODELS)), strict=True)
    assert decoders == towers == (2, 2, 3, 3)
