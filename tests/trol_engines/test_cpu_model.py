"""The CPU model: both roles as branches of one `If` over one set of weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto

from emitted_graphs import (
    PRECISIONS,
    PlainSession,
    all_nodes,
    attributes,
    cache_feeds,
    cpu_language,
    external,
    present_as_past,
    promoted,
    seeded_model,
    stored_graph,
    subgraphs,
    weight_initializers,
    write_weights,
)
from trol_engines.cpu_model import ROLE_NUMBER, cut
from trol_graphs.graph_io import Role
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import rope_rows

CONFIG_NAMES = ("micro-internlm2", "micro-phi3")
PROMPT = np.array([[5, 9, 200, 33, 4, 77]])
CAPACITY = 16

Feeds = dict[str, np.ndarray]
LANGUAGE_ROLES: tuple[Role, ...] = ("prefill", "decode")


@pytest.fixture(scope="module", params=CONFIG_NAMES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return seeded_model(request.param)[0]


@pytest.fixture(scope="module")
def folder(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """precision -> a folder with weights.safetensors."""
    (read,) = (read for name in CONFIG_NAMES for model, read in [seeded_model(name)] if model == config)
    made: dict[str, Path] = {}

    def weights(precision: str) -> Path:
        if precision not in made:
            made[precision] = write_weights(tmp_path_factory.mktemp(precision), config, precision, read)
        return made[precision]

    return weights


def select_node(model: ModelProto) -> NodeProto:
    (node,) = [node for node in model.graph.node if node.op_type == "If"]
    return node


def branch(model: ModelProto, role: str) -> onnx.GraphProto:
    return attributes(select_node(model))[{"prefill": "then_branch", "decode": "else_branch"}[role]]


def prompt_feeds(config: ModelConfig, capacity: int = CAPACITY) -> Feeds:
    cos, sin = rope_rows(config.decoder, np.arange(PROMPT.shape[1])[None], PROMPT.shape[1])
    image = np.zeros((1, config.decoder.hidden_size), np.float32)
    return {"input_ids": PROMPT, "image_embeds": image, "cos": cos, "sin": sin, **cache_feeds(config, capacity)}


def step_feeds(config: ModelConfig, past: Feeds, capacity: int = CAPACITY) -> Feeds:
    position = PROMPT.shape[1]
    cos, sin = rope_rows(config.decoder, np.array([[position]]), position + 1)
    mask = (np.arange(capacity) <= position)[None, None, None]
    step = {"token_ids": np.array([8]), "write_index": np.array([position]), "attention_mask": mask}
    return {**step, "cos": cos, "sin": sin, **past}


def of_role(role: str, feeds: Feeds, config: ModelConfig) -> Feeds:
    """`feeds` of one role with something for every input of the other."""
    unused: Feeds = {
        "input_ids": np.zeros((1, 1), np.int64),
        "image_embeds": np.zeros((1, config.decoder.hidden_size), np.float32),
        "token_ids": np.zeros(1, np.int64),
        "write_index": np.zeros(1, np.int64),
        "attention_mask": np.zeros((1, 1, 1, 1), np.bool_),
    }
    return {**unused, **feeds, "role": np.array(ROLE_NUMBER[role])}


# Form


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_if_selects_the_role(config: ModelConfig, precision: str) -> None:
    model = cpu_language(config, precision)
    assert [node.op_type for node in all_nodes(model) if node.op_type in {"If", "Loop", "Scan"}] == ["If"]
    outside = {node.op_type for node in model.graph.node}
    assert outside == {"Equal", "If"} | ({"Cast"} if precision == "fp16" else set())


def test_inputs_are_the_union_of_both_roles_and_the_role_itself(config: ModelConfig) -> None:
    inputs = [value.name for value in cpu_language(config).graph.input]
    of_roles = [stored_graph(config, role).graph.input for role in LANGUAGE_ROLES]
    assert inputs == ["role", *dict.fromkeys(value.name for values in of_roles for value in values)]


def test_outputs_are_those_both_roles_have(config: ModelConfig) -> None:
    outputs = [value.name for value in cpu_language(config).graph.output]
    assert outputs == [value.name for value in stored_graph(config, "prefill").graph.output]
    assert outputs == [value.name for value in stored_graph(config, "decode").graph.output]


def test_shared_inputs_admit_one_long_row_and_many_short_ones(config: ModelConfig) -> None:
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in cpu_language(config).graph.input
    }
    half = config.decoder.head_dim // 2
    assert shapes["cos"] == ["batch", "sequence_length", half]
    assert shapes["past_key_values.0.key"][0] == "batch"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_weight_is_one_initializer_of_the_outer_graph(config: ModelConfig, precision: str) -> None:
    model = cpu_language(config, precision)
    wanted = set(weight_initializers(stored_graph(config, "prefill", precision)))
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))
    assert set(weight_initializers(model)) == wanted
    for role in ROLE_NUMBER:
        assert not branch(model, role).initializer
        assert not branch(model, role).input


def test_stored_fp16_weights_are_cast_once_for_both_branches(config: ModelConfig) -> None:
    model = cpu_language(config, "fp16")
    weights = weight_initializers(model)
    casts = [node.input[0] for node in all_nodes(model) if node.op_type == "Cast" and node.input[0] in weights]
    assert len(casts) == len(set(casts))
    outer = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    assert set(casts) == outer
    # The embedding table is the one weight that is not: its rows are cast after the look-up.
    (table,) = weights.keys() - outer
    assert table.endswith(("tok_embeddings.weight", "embed_tokens.weight"))


# Numbers


@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_a_branch_computes_what_its_stored_graph_does(
    config: ModelConfig, folder: Callable[[str], Path], role: Role
) -> None:
    where = folder("fp32")
    joined = PlainSession(cpu_language(config), where)
    past = present_as_past(joined.run(of_role("prefill", prompt_feeds(config), config)))
    feeds = prompt_feeds(config) if role == "prefill" else step_feeds(config, past)
    alone = PlainSession(stored_graph(config, role), where).run(feeds)
    for name, found in joined.run(of_role(role, feeds, config)).items():
        np.testing.assert_array_equal(found, alone[name], err_msg=name)


def cut_run(config: ModelConfig, where: Path, role: str, feeds: Feeds, outputs: list[str]) -> Feeds:
    """The cut between the values in `feeds` and `outputs`, run; outputs by the names asked for."""
    part = ModelProto.FromString(cut(cpu_language(config).SerializeToString(), role, list(feeds), outputs))
    names = [value.name for value in part.graph.input]
    results = PlainSession(part, where).run(dict(zip(names, feeds.values(), strict=True)))
    return dict(zip(outputs, results.values(), strict=True))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_a_layer_cut_out_at_named_values_computes_what_the_whole_does(
    config: ModelConfig, folder: Callable[[str], Path], role: str, layer: int
) -> None:
    where = folder("fp32")
    caches = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    wanted = [f"layers.{layer}.output", f"present.{layer}.key", f"present.{layer}.value"]
    named = ["layers.0.output", "layers.1.output"]
    prefill = PlainSession(promoted(stored_graph(config, "prefill"), ["inputs_embeds", *named]), where)
    whole = prefill.run(prompt_feeds(config))
    if role == "prefill":
        feeds, inputs = prompt_feeds(config), ["input_ids", "cos", "sin", *caches]
        before = "layers.0.output" if layer else "inputs_embeds"
    else:
        feeds = step_feeds(config, present_as_past(whole))
        whole = PlainSession(promoted(stored_graph(config, "decode"), named), where).run(feeds)
        inputs, before = ["cos", "sin", "write_index", "attention_mask", *caches], "layers.0.output"
        if not layer:  # the first decode layer begins at the token itself
            inputs, before = ["token_ids", *inputs], ""
    given = {name: feeds[name] for name in inputs}
    if before:
        given = {before: whole[before], **given}
    for name, found in cut_run(config, where, role, given, wanted).items():
        np.testing.assert_array_equal(found, whole[name], err_msg=name)


def test_a_cut_holds_the_weights_of_its_part_alone(config: ModelConfig) -> None:
    last = config.decoder.layers - 1
    part = cut(cpu_language(config).SerializeToString(), "prefill", [f"layers.{last}.output"], ["logits"])
    weights = set(weight_initializers(ModelProto.FromString(part)))
    assert len(weights) == 2  # final norm and head
    assert all(name.endswith(("norm.weight", "output.weight", "lm_head.weight")) for name in weights)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        pytest.param(["layers.0.output"], ["layers.9.output"], id="unknown output"),
        pytest.param(["layers.9.output"], ["logits"], id="unknown input"),
    ],
)
def test_a_name_the_role_does_not_have_is_refused_by_name(
    config: ModelConfig, inputs: list[str], outputs: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"layers\.9\.output"):
        cut(cpu_language(config).SerializeToString(), "prefill", inputs, outputs)


def test_a_cut_whose_inputs_do_not_bound_it_is_refused(config: ModelConfig) -> None:
    with pytest.raises(ValueError, match=r"layers\.1\.output|past_key_values|cos|sin|input_ids"):
        cut(cpu_language(config).SerializeToString(), "prefill", ["layers.0.output"], ["layers.1.output"])


# Memory


def options(folder: Path) -> ort.SessionOptions:
    """Those of the runtime's CPU backend."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.enable_cpu_mem_arena = False
    settings.add_session_config_entry("session.disable_prepacking", "1")
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return settings


def written_bytes(path: Path) -> int:
    """Bytes of all private mappings of `path` that were written to and so became memory of this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Anonymous:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="written pages are counted in /proc: Linux only")
@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_caches_bound_as_input_and_output_are_written_in_place(
    config: ModelConfig, folder: Callable[[str], Path], role: str, tmp_path: Path
) -> None:
    """The caches are copy-on-write mappings of a file of holes: only pages that something writes become memory."""
    capacity = 2**14
    session = ort.InferenceSession(
        cpu_language(config).SerializeToString(), options(folder("fp32")), providers=["CPUExecutionProvider"]
    )
    binding, buffers = session.io_binding(), {}
    feeds = prompt_feeds(config) if role == "prefill" else step_feeds(config, {}, capacity)
    feeds = {name: value for name, value in feeds.items() if not name.startswith("past_key_values")}
    for name, value in of_role(role, feeds, config).items():
        binding.bind_cpu_input(name, np.ascontiguousarray(value))
    binding.bind_output("logits", "cpu")
    holes = tmp_path / "caches"
    decoder = config.decoder
    shape = (1, decoder.kv_heads, capacity, decoder.head_dim)
    nbytes = 4 * int(np.prod(shape))
    names = [f"{layer}.{part}" for layer in range(decoder.layers) for part in ("key", "value")]
    with holes.open("wb") as file:
        file.truncate(nbytes * len(names))
    for number, name in enumerate(names):
        buffer = np.memmap(holes, np.float32, "c", number * nbytes, shape)
        place = ("cpu", 0, np.float32, shape, buffer.ctypes.data)
        binding.bind_input(f"past_key_values.{name}", *place)
        binding.bind_output(f"present.{name}", *place)
        buffers[name] = buffer
    session.run_with_iobinding(binding)
    touched = written_bytes(holes)
    first, last = (0, PROMPT.shape[1]) if role == "prefill" else (PROMPT.shape[1], PROMPT.shape[1] + 1)
    for buffer in buffers.values():
        assert buffer[:, :, first:last].all()
        assert not buffer[:, :, last:].any()
    # One page for the new rows of each key/value head; a copy would have written all of the buffers.
    page = os.sysconf("SC_PAGESIZE")
    assert touched <= 2 * page * decoder.kv_heads * len(names) < nbytes * len(names) / 8


def optimised(config: ModelConfig, precision: str, where: Path, target: Path) -> ModelProto:
    """The graph ONNX Runtime really runs, weights beside it."""
    settings = options(where)
    settings.optimized_model_filepath = str(target)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.data")
    settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "256")
    model = cpu_language(config, precision).SerializeToString()
    ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return onnx.load(target, load_external_data=False)


def test_onnx_runtime_makes_no_copy_of_any_fp32_weight(
    config: ModelConfig, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its optimised graph holds each weight under its own name, once: nothing is packed, fused or transposed."""
    model = optimised(config, "fp32", folder("fp32"), tmp_path / "optimised.onnx")
    tensors = [tensor for graph in subgraphs(model.graph) for tensor in graph.initializer]
    weights = weight_initializers(cpu_language(config))
    by_name = [tensor.name for tensor in tensors if tensor.name in weights]
    assert sorted(by_name) == sorted(weights)
    for tensor in tensors:
        if tensor.name in weights:
            assert list(tensor.dims) == list(weights[tensor.name].dims), tensor.name
        else:
            assert int(np.prod(tensor.dims)) <= 8, f"{tensor.name} {list(tensor.dims)} is new and no small constant"
    for graph in subgraphs(model.graph):
        for node in graph.node:
            if node.op_type in {"Gemm", "FusedGemm"}:
                assert node.input[1] in weights, node.name
                assert attributes(node)["transB"] == 1, node.name
            assert node.op_type != "MatMul", node.name
            assert not (node.op_type == "Transpose" and node.input[0] in weights), node.name
    # The gate's inlined Gemm is in the list too, so no linear is left out.
    assert external(weights["trol_gating.weight"])
