"""Graphs for older TensorRT: the same numbers out of opset 17, with new keys and values as rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper

from emitted_graphs import (
    PlainSession,
    ReadArray,
    both_caches,
    cache_feeds,
    present_as_past,
    seeded_model,
    stored_graph,
    write_weights,
)
from trol_engines.legacy_graph import OPSET, to_legacy
from trol_engines.plan_graph import as_bytes, read_graph
from trol_graphs.graph_io import Role
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import rope_rows

ROLES: tuple[Role, ...] = ("vision", "prefill", "decode", "extend")
CONFIGS = ("micro-internlm2", "micro-phi3")
PROMPT = np.array([[5, 9, 200, 33, 4, 77]])
PREFIX, LENGTH = 4, 16
# fp32: sums in another order. fp16: every product is rounded to 11 bits, and the modern form rounds in other places.
TOLERANCE = {"fp32": 2e-5, "fp16": 2e-2}

Feeds = dict[str, np.ndarray]
Run = Callable[[Role, bool, Feeds], Feeds]  # role, legacy or not, what goes in -> what comes out


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> tuple[ModelConfig, ReadArray]:
    return seeded_model(request.param)


@pytest.fixture(scope="module")
def config(model: tuple[ModelConfig, ReadArray]) -> ModelConfig:
    return model[0]


def legacy(config: ModelConfig, role: Role, precision: str = "fp32") -> ModelProto:
    graph = to_legacy(read_graph(stored_graph(config, role, precision).SerializeToString()))
    return ModelProto.FromString(as_bytes(graph))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(model: tuple[ModelConfig, ReadArray], precision: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config, read = model
    folder: Path = write_weights(tmp_path_factory.mktemp("weights"), config, precision, read)
    sessions: dict[tuple[Role, bool], PlainSession] = {}

    def session(role: Role, in_legacy: bool, feeds: Feeds) -> Feeds:
        if (role, in_legacy) not in sessions:
            graph = legacy(config, role, precision) if in_legacy else stored_graph(config, role, precision)
            sessions[role, in_legacy] = PlainSession(graph, folder)
        return sessions[role, in_legacy].run(feeds)

    return session


def prompt(config: ModelConfig, precision: str, begin: int, end: int) -> Feeds:
    """Tokens begin to end of PROMPT, all text."""
    cos, sin = rope_rows(config.decoder, np.arange(begin, end)[None], PROMPT.shape[1])
    narrow = np.float16 if precision == "fp16" else np.float32
    embeds = np.zeros((1, config.decoder.hidden_size), narrow)
    return {"input_ids": PROMPT[:, begin:end], "image_embeds": embeds, "cos": cos, "sin": sin}


def assert_same(found: np.ndarray, expected: np.ndarray, precision: str) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()


@pytest.mark.parametrize("role", ROLES)
def test_opset_17_suffices(config: ModelConfig, role: Role) -> None:
    model = legacy(config, role)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert not model.functions
    # Each node against the schema of its operator in this opset; the weights lie in no file here.
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
            tensor.raw_data = bytes(int(np.prod(tensor.dims)) * 4)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("role", ["prefill", "extend"])
def test_image_tokens_are_counted_in_a_type_that_tensorrt_10_3_sums(config: ModelConfig, role: Role) -> None:
    """FP32, FP16 or BF16 (onnx-tensorrt 10.1, docs/operators.md); the place of an image token stays an integer."""
    graph = read_graph(legacy(config, role).SerializeToString()).graph
    (summed,) = (node for node in graph if node.op_type == "CumSum")
    assert [value.producer().attributes["to"].as_int() for value in summed.inputs[:1]] == [TensorProto.FLOAT]  # type: ignore[union-attr]
    (counted,) = (node for node, _ in summed.outputs[0].uses())
    assert (counted.op_type, counted.attributes["to"].as_int()) == ("Cast", TensorProto.INT64)


def test_a_prompt_comes_out_with_its_keys_and_values_as_rows(config: ModelConfig, precision: str, run: Run) -> None:
    tokens = PROMPT.shape[1]
    feeds = prompt(config, precision, 0, tokens)
    expected = run("prefill", False, feeds | cache_feeds(config, LENGTH, precision=precision))
    found = run("prefill", True, feeds)
    assert found.keys() == expected.keys()
    assert_same(found["logits"], expected["logits"], precision)
    for name in expected.keys() - {"logits"}:
        assert found[name].shape[2] == tokens
        assert_same(found[name], expected[name][:, :, :tokens], precision)


def test_decoding_attends_to_the_cache_and_to_the_new_token(config: ModelConfig, precision: str, run: Run) -> None:
    caches = present_as_past(
        run("prefill", False, prompt(config, precision, 0, PREFIX) | cache_feeds(config, LENGTH, precision=precision))
    )
    # Two rows of other lengths; what lies in the cache beyond them must not be looked at.
    caches = {name: np.concatenate([cache, cache]) for name, cache in caches.items()}
    for cache in caches.values():
        cache[0, :, PREFIX:], cache[1, :, PREFIX - 1 :] = 7, 7
    lengths = np.array([PREFIX, PREFIX - 1])
    cos, sin = rope_rows(config.decoder, lengths[:, None], PROMPT.shape[1])
    step: Feeds = {"token_ids": np.array([77, 4]), "cos": cos, "sin": sin}
    up_to_itself = (np.arange(LENGTH) <= lengths[:, None])[:, None, None]
    before_it = (np.arange(LENGTH) < lengths[:, None])[:, None, None]
    expected = run("decode", False, step | caches | {"write_index": lengths, "attention_mask": up_to_itself})
    found = run("decode", True, step | caches | {"attention_mask": before_it})
    assert_same(found["logits"], expected["logits"], precision)
    for name in expected.keys() - {"logits"}:
        rows = np.stack([expected[name][row, :, length] for row, length in enumerate(lengths)])
        assert_same(found[name][:, :, 0], rows, precision)


def test_a_prompt_goes_on_behind_its_prefix(config: ModelConfig, precision: str, run: Run) -> None:
    tokens = PROMPT.shape[1]
    caches = both_caches(config, LENGTH, precision)
    positions = np.arange(tokens)
    causal = (np.arange(LENGTH) <= positions[:, None])[None, None]
    first = prompt(config, precision, 0, PREFIX)
    behind = {"write_index": np.array([0]), "attention_mask": causal[:, :, :PREFIX]}
    caches = present_as_past(run("extend", False, first | behind | caches))
    rest = prompt(config, precision, PREFIX, tokens)
    behind = {"write_index": np.array([PREFIX]), "attention_mask": causal[:, :, PREFIX:]}
    expected = run("extend", False, rest | behind | caches)
    prefix = (np.arange(LENGTH) < PREFIX)[None, None, None]
    found = run("extend", True, rest | {"attention_mask": prefix} | caches)
    assert_same(found["logits"], expected["logits"], precision)
    for name in expected.keys() - {"logits"}:
        assert_same(found[name], expected[name][:, :, PREFIX:tokens], precision)


def test_pictures_are_seen_alike(model: tuple[ModelConfig, ReadArray], precision: str, run: Run) -> None:
    side = model[0].vision.image_size
    pixels = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    expected, found = (run("vision", form, {"pixel_values": pixels})["image_embeds"] for form in (False, True))
    assert_same(found, expected, precision)


def test_what_has_no_older_form_is_named() -> None:
    value, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    node = helper.make_node("TensorSprinkle", ["x"], ["y"], domain="elsewhere")
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("elsewhere", 1)]
    odd = helper.make_model(helper.make_graph([node], "odd", [value], [output]), opset_imports=opsets)
    with pytest.raises(NotImplementedError, match="no form in opset 17 of an operator of another domain"):
        to_legacy(ir.from_proto(odd))
