"""The CPU model: three roles as branches of nested `If`s over one set of weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

from emitted_graphs import (
    PRECISIONS,
    PlainSession,
    all_nodes,
    attributes,
    both_caches,
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
from official_model import assert_close
from trol_engines.cpu_model import ROLE_NUMBER, cut
from trol_graphs.graph_io import Role
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import rope_rows

CONFIG_NAMES = ("micro-internlm2", "micro-phi3")
PROMPT = np.array([[5, 9, 200, 33, 4, 77]])
CAPACITY = 16

Feeds = dict[str, np.ndarray]
LANGUAGE_ROLES: tuple[Role, ...] = ("prefill", "decode", "extend")
PREFIX = 4  # tokens of PROMPT that lie in the caches before `extend` gets the others


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


def branches(model: ModelProto) -> dict[str, onnx.GraphProto]:
    """The subgraphs of all `If`s, by name."""
    return {graph.name: graph for graph in subgraphs(model.graph) if graph is not model.graph}


def part_feeds(config: ModelConfig, begin: int, end: int) -> Feeds:
    """Tokens `begin` to `end` of PROMPT, without a picture."""
    cos, sin = rope_rows(config.decoder, np.arange(begin, end)[None], PROMPT.shape[1])
    image = np.zeros((1, config.decoder.hidden_size), np.float32)
    return {"input_ids": PROMPT[:, begin:end], "image_embeds": image, "cos": cos, "sin": sin}


def prompt_feeds(config: ModelConfig, capacity: int = CAPACITY) -> Feeds:
    return {**part_feeds(config, 0, PROMPT.shape[1]), **cache_feeds(config, capacity)}


def extend_feeds(config: ModelConfig, past: Feeds, begin: int, end: int, capacity: int = CAPACITY) -> Feeds:
    mask = np.arange(capacity) <= np.arange(begin, end)[:, None]
    place = {"write_index": np.array([begin]), "attention_mask": mask[None, None]}
    return {**part_feeds(config, begin, end), **place, **past}


def step_feeds(config: ModelConfig, past: Feeds, capacity: int = CAPACITY) -> Feeds:
    position = PROMPT.shape[1]
    cos, sin = rope_rows(config.decoder, np.array([[position]]), position + 1)
    mask = (np.arange(capacity) <= position)[None, None, None]
    step = {"token_ids": np.array([8]), "write_index": np.array([position]), "attention_mask": mask}
    return {**step, "cos": cos, "sin": sin, **past}


def feeds_of(role: str, config: ModelConfig, where: Path) -> Feeds:
    """What a role is fed: the whole of PROMPT, the token behind it, or its end with the beginning in the caches."""
    if role == "prefill":
        return prompt_feeds(config)
    if role == "decode":
        prefill = PlainSession(stored_graph(config, "prefill"), where)
        return step_feeds(config, present_as_past(prefill.run(prompt_feeds(config))))
    extend, empty = PlainSession(stored_graph(config, "extend"), where), both_caches(config, CAPACITY)
    prefix = extend.run(extend_feeds(config, empty, 0, PREFIX))
    return extend_feeds(config, present_as_past(prefix), PREFIX, PROMPT.shape[1])


def of_role(role: str, feeds: Feeds, config: ModelConfig) -> Feeds:
    """`feeds` of one role with something for every input of the others."""
    unused: Feeds = {
        "input_ids": np.zeros((1, 1), np.int64),
        "image_embeds": np.zeros((1, config.decoder.hidden_size), np.float32),
        "token_ids": np.zeros(1, np.int64),
        "write_index": np.zeros(1, np.int64),
        "attention_mask": np.zeros((1, 1, 1, 1), np.bool_),
        **both_caches(config, 1),
    }
    return {**unused, **feeds, "role": np.array(ROLE_NUMBER[role])}


# Form


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nested_ifs_select_the_role_and_decode_is_asked_for_first(config: ModelConfig, precision: str) -> None:
    model = cpu_language(config, precision)
    assert list(branches(model)) == ["decode", "not_decode", "prefill", "extend"]
    control = [node.name for node in all_nodes(model) if node.op_type in {"If", "Loop", "Scan"}]
    assert control == ["select_decode", "select_prefill"]
    outside = {node.op_type for node in model.graph.node}
    assert outside == {"Equal", "If"} | ({"Cast"} if precision == "fp16" else set())
    assert [node.op_type for node in branches(model)["not_decode"].node] == ["Equal", "If"]


def test_inputs_are_the_union_of_all_roles_and_the_role_itself(config: ModelConfig) -> None:
    inputs = [value.name for value in cpu_language(config).graph.input]
    of_roles = {value.name for role in LANGUAGE_ROLES for value in stored_graph(config, role).graph.input}
    assert inputs[0] == "role"
    assert sorted(inputs[1:]) == sorted(of_roles)


def test_outputs_are_logits_and_the_caches_of_both_passes(config: ModelConfig) -> None:
    outputs = [value.name for value in cpu_language(config).graph.output]
    assert outputs == [value.name for value in stored_graph(config, "extend").graph.output]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_role_without_a_second_pass_s_caches_hands_them_on(
    config: ModelConfig, folder: Callable[[str], Path], role: str
) -> None:
    where = folder("fp32")
    handed = [name for name in both_caches(config, CAPACITY) if name.startswith("past_second_pass")]
    full = {name: np.full_like(array, 3) for name, array in both_caches(config, CAPACITY).items() if name in handed}
    joined = PlainSession(cpu_language(config), where)
    outputs = joined.run(of_role(role, {**feeds_of(role, config, where), **full}, config))
    for name in handed:
        np.testing.assert_array_equal(outputs[name.replace("past", "present")], full[name])


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
    for graph in branches(model).values():
        assert not graph.initializer, graph.name
        assert not graph.input, graph.name


def test_stored_fp16_weights_are_cast_once_for_all_branches(config: ModelConfig) -> None:
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
    """Bit for bit as the runtime runs them; packed weights would be summed in another order."""
    where = folder("fp32")
    feeds = feeds_of(role, config, where)
    outputs = [value.name for value in stored_graph(config, role).graph.output]
    joined, alone = (
        ort.InferenceSession(model.SerializeToString(), options(where), providers=["CPUExecutionProvider"])
        for model in (cpu_language(config), stored_graph(config, role))
    )
    found, expected = joined.run(outputs, of_role(role, feeds, config)), alone.run(outputs, feeds)
    for name, ours, theirs in zip(outputs, found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_the_end_of_a_prompt_extends_its_beginning_to_what_a_prefill_gives(
    config: ModelConfig, folder: Callable[[str], Path]
) -> None:
    """All through the joined model, the caches of one run being those of the next, and a decode step behind it."""
    joined = PlainSession(cpu_language(config), folder("fp32"))
    whole = joined.run(of_role("prefill", prompt_feeds(config), config))
    past = both_caches(config, CAPACITY)
    for begin, end in ((0, PREFIX), (PREFIX, PROMPT.shape[1])):
        parts = joined.run(of_role("extend", extend_feeds(config, past, begin, end), config))
        past = present_as_past(parts)
    assert_close("logits", parts["logits"], whole["logits"])
    steps = [joined.run(of_role("decode", step_feeds(config, present_as_past(run)), config)) for run in (whole, parts)]
    assert_close("logits of the step behind", steps[1]["logits"], steps[0]["logits"])


def cut_run(config: ModelConfig, where: Path, role: str, feeds: Feeds, outputs: list[str]) -> Feeds:
    """The cut between the values in `feeds` and `outputs`, run; outputs by the names asked for."""
    part = ModelProto.FromString(cut(cpu_language(config).SerializeToString(), role, list(feeds), outputs))
    names = [value.name for value in part.graph.input]
    results = PlainSession(part, where).run(dict(zip(names, feeds.values(), strict=True)))
    return dict(zip(outputs, results.values(), strict=True))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_a_layer_cut_out_at_named_values_computes_what_the_whole_does(
    config: ModelConfig, folder: Callable[[str], Path], role: Role, layer: int
) -> None:
    where = folder("fp32")
    feeds = feeds_of(role, config, where)
    named = ["layers.0.output", "layers.1.output", *(["inputs_embeds"] if role != "decode" else [])]
    whole = PlainSession(promoted(stored_graph(config, role), named), where).run(feeds)
    caches = [name for name in feeds if name.partition(".")[2].startswith(f"{layer}.")]
    steps = [name for name in ("input_ids", "cos", "sin", "write_index", "attention_mask") if name in feeds]
    before = "layers.0.output" if layer else "inputs_embeds"
    # The first decode layer begins at the token itself.
    given = {"token_ids": feeds["token_ids"]} if role == "decode" and not layer else {before: whole[before]}
    given |= {name: feeds[name] for name in [*steps, *caches]}
    wanted = [f"layers.{layer}.output", *(name.replace("past_key_values", "present") for name in caches)]
    wanted = [name.replace("past_second_pass", "present_second_pass") for name in wanted]
    assert len(wanted) == (5 if role == "extend" else 3)
    for name, found in cut_run(config, where, role, given, wanted).items():
        np.testing.assert_array_equal(found, whole[name], err_msg=name)


@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_a_cut_holds_the_weights_of_its_part_alone(config: ModelConfig, role: Role) -> None:
    last = config.decoder.layers - 1
    part = cut(cpu_language(config).SerializeToString(), role, [f"layers.{last}.output"], ["logits"])
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
    """The caches are copy-on-write mappings of a file of holes: only pages that something writes become memory.

    Those of the second pass too, which prefill and decode hand on as they are.
    """
    capacity = 2**14
    session = ort.InferenceSession(
        cpu_language(config).SerializeToString(), options(folder("fp32")), providers=["CPUExecutionProvider"]
    )
    binding, buffers = session.io_binding(), {}
    first, last = {"prefill": (0, 6), "decode": (6, 7), "extend": (PREFIX, 6)}[role]
    feeds = {
        "prefill": lambda: part_feeds(config, first, last),
        "decode": lambda: step_feeds(config, {}, capacity),
        "extend": lambda: extend_feeds(config, {}, first, last, capacity),
    }[role]()
    for name, value in of_role(role, feeds, config).items():
        if name not in both_caches(config, CAPACITY):
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
    binding.bind_output("logits", "cpu")
    holes = tmp_path / "caches"
    decoder = config.decoder
    shape = (1, decoder.kv_heads, capacity, decoder.head_dim)
    nbytes = 4 * int(np.prod(shape))
    pasts, presents = list(both_caches(config, CAPACITY)), [f.name for f in session.get_outputs() if f.name != "logits"]
    with holes.open("wb") as file:
        file.truncate(nbytes * len(pasts))
    for number, (past, present) in enumerate(zip(pasts, presents, strict=True)):
        buffer = np.memmap(holes, np.float32, "c", number * nbytes, shape)
        place = ("cpu", 0, np.float32, shape, buffer.ctypes.data)
        binding.bind_input(past, *place)
        binding.bind_output(present, *place)
        buffers[past] = buffer
    session.run_with_iobinding(binding)
    touched = written_bytes(holes)
    names = [name for name in buffers if role == "extend" or name.startswith("past_key_values")]
    for name, buffer in buffers.items():
        assert buffer[:, :, first:last].all() == (name in names), name
        assert not buffer[:, :, :first].any()
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
