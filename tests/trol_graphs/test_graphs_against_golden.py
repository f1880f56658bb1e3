"""The exported graphs, run by plain ONNX Runtime on weights.safetensors, against the official outputs.

Named values become outputs in a copy of the graph, so that every layer is compared, not the logits alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx.inliner import inline_local_functions

from emitted_graphs import (
    NUMPY_TYPE,
    PRECISIONS,
    PlainSession,
    both_caches,
    cache_feeds,
    present_as_past,
    promoted,
    stored_graph,
)
from official_model import OfficialModel, assert_close
from trol_graphs.graph_io import Role
from trol_runtime.rope import rope_rows

GOLDEN_NAME = {"first_pass": "x1", "second_pass": "x2", "gate": "gate", "output": "mixed"}
Folder = Callable[[str], Path]


def gates_of(model: ModelProto, layers: int) -> list[str]:
    """The names of the mixers' gates in a model whose local functions are inlined: what multiplies the second pass."""
    consumers = {f"layers.{layer}.second_pass": "" for layer in range(layers)}
    for node in model.graph.node:
        for value in consumers.keys() & set(node.input):
            if node.op_type == "Mul":
                (consumers[value],) = set(node.input) - {value}
    return list(consumers.values())


def prefill_feeds(
    official: OfficialModel, ids: np.ndarray, embeds: np.ndarray | None, length: int, precision: str
) -> dict[str, np.ndarray]:
    dtype = NUMPY_TYPE[precision]
    cos, sin = rope_rows(official.config.decoder, np.arange(ids.shape[1])[None], ids.shape[1])
    rows = np.zeros((1, official.hidden), dtype) if embeds is None else embeds.astype(dtype)
    caches = cache_feeds(official.config, length, precision=precision)
    return {"input_ids": ids, "image_embeds": rows, "cos": cos, "sin": sin, **caches}


def extend_feeds(
    official: OfficialModel,
    ids: np.ndarray,
    embeds: np.ndarray | None,
    part: slice,
    past: dict[str, np.ndarray],
    precision: str,
) -> dict[str, np.ndarray]:
    """ids, embeds: of the whole prompt, of which the graph is given `part`"""
    positions = np.arange(ids.shape[1])[part]
    first, last = ((ids[0, :place] == official.config.image_token_id).sum() for place in (part.start, part.stop))
    shown = embeds[first:last] if embeds is not None and last > first else np.zeros((1, official.hidden))
    cos, sin = rope_rows(official.config.decoder, positions[None], ids.shape[1])
    mask = np.arange(next(iter(past.values())).shape[2]) <= positions[:, None]
    step = {"input_ids": ids[:, part], "write_index": positions[:1], "attention_mask": mask[None, None]}
    return {**step, "image_embeds": shown.astype(NUMPY_TYPE[precision]), "cos": cos, "sin": sin, **past}


def parts_of(length: int) -> list[slice]:
    """A prompt in four parts: the third begins within a picture, if there is one, and the last is a single token."""
    places = [0, 7, length // 2, length - 1, length]
    return [slice(begin, end) for begin, end in pairwise(places)]


def decode_feeds(
    official: OfficialModel, token: int, position: int, past: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    cos, sin = rope_rows(official.config.decoder, np.array([[position]]), position + 1)
    capacity = next(iter(past.values())).shape[2]
    mask = (np.arange(capacity) <= position)[None, None, None]
    step = {"token_ids": np.array([token]), "write_index": np.array([position]), "attention_mask": mask}
    return {**step, "cos": cos, "sin": sin, **past}


class GraphRun:
    """The stored graphs of one precision, teacher-forced through a golden case."""

    def __init__(self, official: OfficialModel, precision: str, folder: Path, named: bool) -> None:
        self.official, self.precision, self.folder, self.named = official, precision, folder, named
        self.gates: dict[str, list[str]] = {}  # role -> the gates' names, where the role's graph has been loaded

    @cache  # noqa: B019  (one object per test session)
    def session(self, role: Role) -> PlainSession:
        model = stored_graph(self.official.config, role, self.precision)
        layers = range(self.official.layers)
        if not self.named:
            return PlainSession(model, self.folder)
        if role == "vision":
            return PlainSession(promoted(model, ["vision.last_hidden", "vision.features"]), self.folder)
        names = [f"layers.{layer}.output" for layer in layers]
        if role != "decode":
            model = inline_local_functions(model)
            passes = [f"layers.{layer}.{part}" for layer in layers for part in ("first_pass", "second_pass")]
            names += ["inputs_embeds", *passes]
            gates = self.gates[role] = gates_of(model, len(layers))
            shape: list[str | int | None] = ["sequence_length", 1]
            model.graph.value_info.extend(
                helper.make_tensor_value_info(gate, TensorProto.FLOAT, shape) for gate in gates
            )
            names += gates
        return PlainSession(promoted(model, names), self.folder)

    def encode(self, picture: str) -> dict[str, np.ndarray]:
        return self.session("vision").run({"pixel_values": self.official.pixels(picture)})

    @cache  # noqa: B019
    def in_parts(self, case: str) -> dict[str, np.ndarray]:
        """What `extend` makes of a prompt in parts, in the form of a prefill's outputs: values of all parts as one."""
        official, ids = self.official, self.official.ids(case)
        past, outputs = both_caches(official.config, ids.shape[1] + 5, self.precision), []
        for part in parts_of(ids.shape[1]):
            feeds = extend_feeds(official, ids, official.embeds_of(case), part, past, self.precision)
            outputs.append(self.session("extend").run(feeds))
            past = present_as_past(outputs[-1])
        per_token = [name for name in outputs[0] if name != "logits" and not name.startswith("present")]
        return {**outputs[-1], **{name: np.concatenate([part[name] for part in outputs]) for name in per_token}}

    @cache  # noqa: B019
    def case(self, case: str) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
        """Outputs of the prefill and of every decode step fed with the official tokens."""
        official, ids = self.official, self.official.ids(case)
        tokens = official.golden[f"{case}/greedy_tokens"][0]
        feeds = prefill_feeds(official, ids, official.embeds_of(case), ids.shape[1] + len(tokens), self.precision)
        prefill = self.session("prefill").run(feeds)
        steps, past = [], present_as_past(prefill)
        for number, token in enumerate(tokens[:-1]):
            steps.append(self.session("decode").run(decode_feeds(official, token, ids.shape[1] + number, past)))
            past = present_as_past(steps[-1])
        return prefill, steps


@pytest.fixture(scope="session")
def exact(official: OfficialModel, onnx_folder: Folder) -> GraphRun:
    """The fp32 graphs with their named values as outputs."""
    return GraphRun(official, "fp32", onnx_folder("fp32"), named=True)


@pytest.fixture(scope="session")
def narrow(official: OfficialModel, onnx_folder: Folder) -> GraphRun:
    """The fp16 graphs as they are stored."""
    return GraphRun(official, "fp16", onnx_folder("fp16"), named=False)


def test_the_fp32_vision_graph_computes_the_official_features(exact: GraphRun) -> None:
    golden = exact.official.golden
    for picture in exact.official.pictures:
        outputs = exact.encode(picture)
        embeds = outputs["image_embeds"]
        found = {"vision_features": outputs["vision.features"].reshape(*embeds.shape[:2], -1), "projected": embeds}
        if golden.arch == "phi3":
            found["vit_last_hidden_tile0"] = outputs["vision.last_hidden"][:1]
        for part, tensor in found.items():
            name = f"image/{picture}/{part}"
            assert_close(name, golden.thin(name, tensor), golden[name])


@pytest.mark.parametrize("case", ["img", "text"])
@pytest.mark.parametrize("role", ["prefill", "extend"])
def test_the_fp32_graphs_of_prompts_compute_every_official_intermediate_tensor(
    exact: GraphRun, role: str, case: str
) -> None:
    """At once by prefill; by extend in parts, whose values together are those of the whole."""
    golden, outputs = exact.official.golden, exact.case(case)[0] if role == "prefill" else exact.in_parts(case)
    seq = exact.official.ids(case).shape[1]
    found = {"inputs_embeds": outputs["inputs_embeds"][None]}
    for layer, gate in enumerate(exact.gates[role]):
        outputs[f"layers.{layer}.gate"] = outputs[gate]
        for ours, theirs in GOLDEN_NAME.items():
            found[f"layer{layer}/{theirs}"] = outputs[f"layers.{layer}.{ours}"][None]
        for part in ("key", "value"):
            found[f"layer{layer}/{part}_cache"] = outputs[f"present.{layer}.{part}"][:, :, :seq]
    for part, tensor in found.items():
        name = f"{case}/{part}"
        assert_close(name, golden.thin(name, tensor), golden[name])
    assert_close(f"{case}/prefill_logits_last", outputs["logits"], golden[f"{case}/prefill_logits_last"])


def test_the_fp32_prefill_graph_computes_the_official_logits_at_every_position(exact: GraphRun) -> None:
    """The graph's logits are the last position's; attention is causal, so every prefix shows one position more."""
    official, ids = exact.official, exact.official.ids("text")
    session = exact.session("prefill")
    lengths = range(2, ids.shape[1] + 1)  # a prompt of one token is a decode step
    rows = [session.run(prefill_feeds(official, ids[:, :n], None, n, "fp32"))["logits"] for n in lengths]
    assert_close("text/prefill_logits", np.stack(rows, axis=1), official.golden["text/prefill_logits"][:, 1:])


@pytest.mark.parametrize("case", ["img", "text"])
def test_the_fp32_decode_graph_computes_every_official_step(exact: GraphRun, case: str) -> None:
    golden, (prefill, steps) = exact.official.golden, exact.case(case)
    seq = exact.official.ids(case).shape[1]
    logits = np.stack([outputs["logits"] for outputs in (prefill, *steps)], axis=1)
    assert_close(f"{case}/greedy_logits", logits, golden[f"{case}/greedy_logits"])
    np.testing.assert_array_equal(logits.argmax(-1), golden[f"{case}/greedy_tokens"])
    for layer in range(exact.official.layers):
        found = {"x_decode": np.stack([step[f"layers.{layer}.output"] for step in steps], axis=1)}
        for part in ("key", "value"):
            found[f"{part}_decode"] = steps[-1][f"present.{layer}.{part}"][:, :, seq : seq + len(steps)]
        for name, tensor in found.items():
            assert_close(f"{case}/layer{layer}/{name}", tensor, golden[f"{case}/layer{layer}/{name}"])


def test_rows_of_different_length_decode_together_as_they_do_alone(exact: GraphRun) -> None:
    """One decode graph, two rows: per-row write index, mask and rotary rows. Each row was prefilled by itself."""
    official = exact.official
    case, rows = "batch2text", (0, 1)
    tokens = np.concatenate([official.golden[f"{case}/row{row}_alone/greedy_tokens"] for row in rows])
    lengths = np.array([official.ids(case, row).shape[1] for row in rows])
    capacity = int(lengths.max()) + tokens.shape[1]
    prefills = [
        exact.session("prefill").run(prefill_feeds(official, official.ids(case, row), None, capacity, "fp32"))
        for row in rows
    ]
    pasts = [present_as_past(prefill) for prefill in prefills]
    past = {name: np.concatenate([past[name] for past in pasts]) for name in pasts[0]}
    logits = [np.concatenate([prefill["logits"] for prefill in prefills])]
    for step in range(tokens.shape[1] - 1):
        feeds = [decode_feeds(official, tokens[row, step], lengths[row] + step, past) for row in rows]
        both = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0] if name not in past}
        outputs = exact.session("decode").run({**both, **past})
        logits.append(outputs["logits"])
        past = present_as_past(outputs)
    for row in rows:
        name = f"{case}/row{row}_alone/greedy_logits"
        assert_close(name, np.stack(logits, axis=1)[row : row + 1], official.golden[name])


@pytest.mark.parametrize("case", ["img", "text"])
def test_the_fp16_graphs_stay_within_the_fp16_budget(narrow: GraphRun, case: str) -> None:
    """Teacher-forced: cosine >= 0.9999, |d| <= 0.01 max |logit|, the same choice where the official gap is clear."""
    expected = narrow.official.golden[f"{case}/greedy_logits"][0].astype(np.float64)
    prefill, steps = narrow.case(case)
    found = np.concatenate([outputs["logits"] for outputs in (prefill, *steps)])
    assert found.dtype == np.float32  # logits keep fp32 at every precision
    found = found.astype(np.float64)
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        cosine = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        assert cosine >= 0.9999, f"step {step}: cosine {cosine:.6f}"
        largest = np.abs(theirs).max()
        assert np.abs(ours - theirs).max() <= 0.01 * largest, f"step {step}: off by {np.abs(ours - theirs).max():.3g}"
        second, first = np.sort(theirs)[-2:]
        if first - second > 0.02 * largest:
            assert ours.argmax() == theirs.argmax(), f"step {step}"


@pytest.mark.parametrize("case", ["img", "text"])
def test_a_prompt_in_parts_stays_within_the_fp16_budget(narrow: GraphRun, case: str) -> None:
    ours = narrow.in_parts(case)["logits"][0].astype(np.float64)
    theirs = narrow.official.golden[f"{case}/prefill_logits_last"][0].astype(np.float64)
    assert ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)) >= 0.9999
    assert np.abs(ours - theirs).max() <= 0.01 * np.abs(theirs).max()


def test_the_fp16_vision_graph_stays_within_the_fp16_budget(narrow: GraphRun) -> None:
    golden = narrow.official.golden
    found = narrow.encode("b")["image_embeds"]
    assert found.dtype == np.float16
    expected = golden["image/b/projected"].astype(np.float64).ravel()
    found = golden.thin("image/b/projected", found).astype(np.float64).ravel()
    assert found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected)) >= 0.9999
    assert np.abs(found - expected).max() <= 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("role", ["prefill", "extend"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_dummy_row_of_a_prompt_without_a_picture_is_never_read(
    official: OfficialModel, onnx_folder: Folder, precision: str, role: Role
) -> None:
    run = GraphRun(official, precision, onnx_folder(precision), named=False)
    ids = official.ids("text")
    length = ids.shape[1]
    if role == "prefill":
        zeros = prefill_feeds(official, ids, None, length, precision)
    else:
        past = both_caches(official.config, length, precision)
        zeros = extend_feeds(official, ids, None, slice(0, length), past, precision)
    poisoned = {**zeros, "image_embeds": np.full_like(zeros["image_embeds"], np.nan)}
    session = run.session(role)
    np.testing.assert_array_equal(session.run(poisoned)["logits"], session.run(zeros)["logits"])
