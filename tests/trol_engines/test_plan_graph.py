"""Graphs of plans: weights become inputs, the cache gets its length, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper

from emitted_graphs import (
    PlainSession,
    ReadArray,
    both_caches,
    cache_feeds,
    external,
    seeded_model,
    stored_graph,
    weight_initializers,
    write_weights,
)
from trol_engines.plan_graph import (
    as_bytes,
    external_weights,
    fix_cache_length,
    input_values,
    plan_graph,
    read_graph,
    weights_to_inputs,
)
from trol_graphs.graph_io import Role
from trol_runtime.axis_names import CACHE
from trol_runtime.manifest import GraphValue
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import rope_rows

ROLES: tuple[Role, ...] = ("vision", "prefill", "decode", "extend")
LENGTH = 16
PROMPT = np.array([[5, 9, 200, 33]])


@pytest.fixture(scope="module", params=["micro-internlm2", "micro-phi3"])
def model(request: pytest.FixtureRequest) -> tuple[ModelConfig, ReadArray]:
    return seeded_model(request.param)


@pytest.fixture(scope="module")
def config(model: tuple[ModelConfig, ReadArray]) -> ModelConfig:
    return model[0]


def stored(config: ModelConfig, role: Role) -> ir.Model:
    return read_graph(stored_graph(config, role, "fp32").SerializeToString())


def changed(model: ir.Model) -> ModelProto:
    return ModelProto.FromString(as_bytes(model))


def axes(model: ModelProto) -> set[str]:
    """The symbolic axes of inputs, outputs and everything between."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    return {axis.dim_param for value in values for axis in value.type.tensor_type.shape.dim if axis.dim_param}


@pytest.mark.parametrize("role", ROLES)
def test_weights_become_inputs_behind_the_roles_own(config: ModelConfig, role: Role) -> None:
    before, graph = stored_graph(config, role, "fp32"), stored(config, role)
    names = weights_to_inputs(graph)
    after = changed(graph)
    assert names == list(weight_initializers(before))
    assert [value.name for value in after.graph.input] == [*(value.name for value in before.graph.input), *names]
    shapes = {tensor.name: list(tensor.dims) for tensor in before.graph.initializer}
    for value in after.graph.input[-len(names) :]:
        assert [axis.dim_value for axis in value.type.tensor_type.shape.dim] == shapes[value.name]
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("role", ROLES)
def test_constants_of_the_graph_itself_stay(config: ModelConfig, role: Role) -> None:
    graph = stored(config, role)
    weights_to_inputs(graph)
    before, after = (
        {t.name for t in m.graph.initializer if not external(t)} for m in (stored_graph(config, role), changed(graph))
    )
    assert after == before
    assert not weight_initializers(changed(graph))
    assert external_weights(graph) == []


@pytest.mark.parametrize("role", ROLES)
def test_the_cache_gets_its_length_everywhere_and_other_axes_stay_symbolic(config: ModelConfig, role: Role) -> None:
    graph = stored(config, role)
    fix_cache_length(graph, LENGTH)
    assert axes(changed(graph)) == axes(stored_graph(config, role)) - {CACHE}
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*changed(graph).graph.input, *changed(graph).graph.output)
    }
    caches = {name: shape for name, shape in shapes.items() if name.startswith(("past", "present"))}
    assert len(caches) == {"vision": 0, "prefill": 8, "decode": 8, "extend": 16}[role]
    assert all(shape[2] == LENGTH for shape in caches.values())


@pytest.mark.parametrize("role", ["prefill", "extend"])
def test_the_changed_graph_computes_what_the_stored_one_does(
    model: tuple[ModelConfig, ReadArray], role: Role, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config, read = model
    folder = write_weights(tmp_path_factory.mktemp("weights"), config, "fp32", read)
    graph = stored(config, role)
    fix_cache_length(graph, LENGTH)
    weights = {name: read(name) for name in weights_to_inputs(graph)}
    feeds = prompt_feeds(config, role)
    expected = PlainSession(stored_graph(config, role, "fp32"), folder).run(feeds)
    found = PlainSession(changed(graph), folder).run(feeds | weights)
    # The same operators on the same numbers; ONNX Runtime may order them otherwise, as it cannot fold inputs.
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_equal_graphs_are_equal_bytes(config: ModelConfig) -> None:
    one, other = stored(config, "decode"), stored(config, "decode")
    for graph in (one, other):
        fix_cache_length(graph, LENGTH)
        weights_to_inputs(graph)
    assert as_bytes(one) == as_bytes(other)


@pytest.mark.parametrize("role", ROLES)
def test_a_modern_graph_has_the_stored_ones_inputs(config: ModelConfig, role: Role) -> None:
    stored_bytes = stored_graph(config, role, "fp16").SerializeToString()
    inputs = input_values(plan_graph(stored_bytes, LENGTH, "modern"))
    fixed = [
        tuple(LENGTH if size == CACHE else size for size in one.shape) for one in input_values(read_graph(stored_bytes))
    ]
    assert [one.shape for one in inputs] == fixed
    assert [one.name for one in inputs] == [one.name for one in input_values(read_graph(stored_bytes))]


@pytest.mark.parametrize("role", ROLES)
def test_a_legacy_graph_takes_no_write_index_and_caches_only_to_read(config: ModelConfig, role: Role) -> None:
    stored_bytes = stored_graph(config, role, "fp16").SerializeToString()
    modern, legacy = (
        {one.name: one for one in input_values(plan_graph(stored_bytes, LENGTH, opset))}
        for opset in ("modern", "legacy")
    )
    read = {name for name in modern if name != "write_index" and (role != "prefill" or not name.startswith("past"))}
    assert legacy.keys() == read
    assert {name for name in legacy if legacy[name] != modern[name]} <= {"attention_mask"}
    if role == "extend":
        assert legacy["attention_mask"] == GraphValue("attention_mask", "bool", (1, 1, 1, LENGTH))


def test_a_graph_without_weights_or_cache_is_left_as_it_is() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])
    plain = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "plain", [value], [output])
    )
    graph = read_graph(plain.SerializeToString())
    fix_cache_length(graph, LENGTH)
    assert weights_to_inputs(graph) == []
    assert axes(changed(graph)) == {"rows"}


def prompt_feeds(config: ModelConfig, role: Role) -> dict[str, np.ndarray]:
    """A prompt of text without a prefix."""
    count = PROMPT.shape[1]
    cos, sin = rope_rows(config.decoder, np.arange(count)[None], count)
    feeds = {"input_ids": PROMPT, "image_embeds": np.zeros((1, config.decoder.hidden_size), np.float32)}
    feeds |= {"cos": cos, "sin": sin}
    if role == "prefill":
        return feeds | cache_feeds(config, LENGTH)
    mask = np.arange(LENGTH)[None] <= np.arange(count)[:, None]
    feeds |= {"write_index": np.zeros(1, np.int64), "attention_mask": mask[None, None]}
    return feeds | both_caches(config, LENGTH)
