"""Models in which no two sizes are equal, and every variant a config may ask for: eager against a second statement of
the official forward pass (`restatement`), and the graphs against eager.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emitted_graphs import (
    DISTINCT,
    PlainSession,
    ReadArray,
    as_torch,
    both_caches,
    cache_feeds,
    present_as_past,
    seeded_model,
    stored_graph,
    write_weights,
)
from golden.seeded_checkpoint import read_config
from official_model import assert_close
from restatement import Restatement, pixel_shuffle_v2
from trol_graphs.eager import EagerSession, eager_model
from trol_graphs.named_values import recorded
from trol_graphs.ops import gate_value
from trol_graphs.partial_lora import PartialLoraLinear
from trol_graphs.vision_internvit import pixel_shuffle
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import rope_rows

CONFIGS: dict[str, Mapping[str, Any]] = {
    **DISTINCT,
    "internlm2 with attention biases": {
        "base": "distinct-internlm2",
        "llm": {"num_hidden_layers": 1, "bias": True},
        "clip": {"num_hidden_layers": 1},
    },
    "phi3 with q/k norms, rms norms and no qkv bias": {
        "base": "distinct-phi3",
        "llm": {"num_hidden_layers": 1},
        "vit": {"num_hidden_layers": 2, "qk_normalization": True, "norm_type": "rms_norm", "qkv_bias": False},
    },
}


@dataclass(frozen=True)
class Distinct:
    """One model three times: its description, the eager modules, the restatement; and where its graphs find weights."""

    config: ModelConfig
    read: ReadArray
    eager: EagerSession
    restated: Restatement
    folder: Path

    @property
    def pixels(self) -> np.ndarray:
        side = self.config.vision.image_size
        return np.random.default_rng(3).standard_normal((2, 3, side, side)).astype(np.float32)

    @property
    def prompt(self) -> np.ndarray:
        """Text, seven image tokens, text; int64 (1, 16)."""
        text = np.random.default_rng(5).integers(3, 200, 9)
        return np.concatenate([text[:5], np.full(7, self.config.image_token_id), text[5:]])[None]

    @property
    def embeds(self) -> np.ndarray:
        return np.random.default_rng(6).standard_normal((7, self.config.decoder.hidden_size)).astype(np.float32)

    def embeds_between(self, begin: int, end: int) -> np.ndarray | None:
        """Those of the image tokens among prompt[begin:end]; None where there are none."""
        first, last = ((self.prompt[0, :place] == self.config.image_token_id).sum() for place in (begin, end))
        return self.embeds[first:last] if last > first else None


@pytest.fixture(scope="module", params=CONFIGS)
def distinct(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Distinct:
    config, read = seeded_model(CONFIGS[request.param])
    folder = write_weights(tmp_path_factory.mktemp("distinct"), config, "fp32", read)
    eager = EagerSession(eager_model(config, as_torch(read)))
    return Distinct(config, read, eager, Restatement(read_config(CONFIGS[request.param]), read), folder)


def test_eager_vision_computes_the_restated_features(distinct: Distinct) -> None:
    with recorded() as values:
        embeds = distinct.eager.encode(distinct.pixels)
    features = distinct.restated.features(distinct.pixels)
    assert_close("features", values["vision.features"].numpy().reshape(features.shape), features)
    assert_close("image_embeds", embeds, distinct.restated.project(features))


def test_eager_prefill_and_decode_compute_the_restated_tensors(distinct: Distinct) -> None:
    eager, restated = distinct.eager, distinct.restated
    expected = restated.prompt(distinct.prompt[0], distinct.embeds)
    with recorded() as values, torch.inference_mode():
        logits = eager.prefill(distinct.prompt, distinct.embeds)
        gate = eager.model.trol_gating
        assert_close("inputs_embeds", values["inputs_embeds"].numpy(), expected.inputs_embeds)
        for layer in range(distinct.config.decoder.layers):
            first, second, output = (values[f"layers.{layer}.{n}"] for n in ("first_pass", "second_pass", "output"))
            assert_close(f"x1 of layer {layer}", first.numpy(), expected.x1[layer])
            assert_close(f"x2 of layer {layer}", second.numpy(), expected.x2[layer])
            opened = gate_value(first, gate.weight, gate.bias)
            assert_close(f"gate of layer {layer}", opened.numpy(), expected.gate[layer])
            assert_close(f"output of layer {layer}", output.numpy(), expected.mixed[layer])
    assert_close("logits", logits[0], expected.logits[-1])
    for step, token in enumerate((17, 150, 4)):
        assert_close(f"logits of step {step}", eager.decode(np.array([token]))[0], restated.step(token))
    for layer in range(distinct.config.decoder.layers):
        kept = {"key": restated.keys[layer], "value": restated.values[layer]}
        for cache, (part, rows) in zip(eager.caches[2 * layer :], kept.items(), strict=False):
            assert_close(f"{part} cache of layer {layer}", cache[0].numpy(), np.stack(rows, axis=1))


def test_the_graphs_compute_what_eager_does(distinct: Distinct) -> None:
    config, eager = distinct.config, distinct.eager
    vision = PlainSession(stored_graph(config, "vision"), distinct.folder)
    found = vision.run({"pixel_values": distinct.pixels})["image_embeds"]
    assert_close("image_embeds", found, eager.encode(distinct.pixels))

    length = distinct.prompt.shape[1]
    cos, sin = rope_rows(config.decoder, np.arange(length)[None], length)
    feeds = {"input_ids": distinct.prompt, "image_embeds": distinct.embeds, "cos": cos, "sin": sin}
    prefill = PlainSession(stored_graph(config, "prefill"), distinct.folder)
    outputs = prefill.run({**feeds, **cache_feeds(config, length + 3)})
    assert_close("logits", outputs["logits"], eager.prefill(distinct.prompt, distinct.embeds))

    decode = PlainSession(stored_graph(config, "decode"), distinct.folder)
    for position, token in enumerate((17, 150, 4), start=length):
        cos, sin = rope_rows(config.decoder, np.array([[position]]), position + 1)
        mask = (np.arange(length + 3) <= position)[None, None, None]
        step = {"token_ids": np.array([token]), "write_index": np.array([position]), "attention_mask": mask}
        outputs = decode.run({**step, "cos": cos, "sin": sin, **present_as_past(outputs)})
        assert_close(f"logits of position {position}", outputs["logits"], eager.decode(np.array([token])))
    for name, cache in zip(present_as_past(outputs), eager.caches, strict=True):
        assert_close(name, outputs[name.replace("past_key_values", "present")], cache.numpy())


@pytest.mark.parametrize("split", range(1, 16))
def test_a_prompt_in_two_parts_computes_what_the_restated_whole_does(distinct: Distinct, split: int) -> None:
    """Wherever it is divided, through the picture too, and however short a part: every token is run twice."""
    eager, restated, ids = distinct.eager, distinct.restated, distinct.prompt
    expected = restated.prompt(ids[0], distinct.embeds)
    eager.reset()
    for begin, end in ((0, split), (split, ids.shape[1])):
        with recorded() as values, torch.inference_mode():
            embeds = distinct.embeds_between(begin, end)
            logits = eager.extend(ids[:, begin:end], embeds, known=ids.shape[1])
        for layer in range(distinct.config.decoder.layers):
            wanted = {"first_pass": expected.x1, "second_pass": expected.x2, "output": expected.mixed}
            for part, rows in wanted.items():
                found = values[f"layers.{layer}.{part}"].numpy()
                assert_close(f"{part} of layer {layer}", found, rows[layer][begin:end])
        assert_close(f"logits of {end} tokens", logits[0], expected.logits[end - 1])
    passes = {
        "first": (eager.caches, restated.keys, restated.values),
        "second": (eager.second_pass, restated.second_keys, restated.second_values),
    }
    for name, (caches, keys, values_of) in passes.items():
        for layer in range(distinct.config.decoder.layers):
            for cache, rows in zip(caches[2 * layer :], (keys[layer], values_of[layer]), strict=False):
                assert_close(f"{name} pass's cache of layer {layer}", cache[0].numpy(), np.stack(rows, axis=1))
    assert_close("logits of the step behind", eager.decode(np.array([17]))[0], restated.step(17))


def test_the_extend_graph_computes_what_eager_does(distinct: Distinct) -> None:
    """Three parts, one of them a single token, in caches with room to spare; every output."""
    config, eager, ids = distinct.config, distinct.eager, distinct.prompt
    length, capacity = ids.shape[1], ids.shape[1] + 3
    extend = PlainSession(stored_graph(config, "extend"), distinct.folder)
    past = both_caches(config, capacity)
    eager.reset()
    for begin, end in ((0, 8), (8, 9), (9, length)):
        embeds = distinct.embeds_between(begin, end)
        cos, sin = rope_rows(config.decoder, np.arange(begin, end)[None], length)
        mask = np.arange(capacity) <= np.arange(begin, end)[:, None]
        dummy = np.zeros((1, config.decoder.hidden_size), np.float32)
        feeds = {"input_ids": ids[:, begin:end], "image_embeds": dummy if embeds is None else embeds}
        feeds |= {"cos": cos, "sin": sin, "write_index": np.array([begin]), "attention_mask": mask[None, None]}
        outputs = extend.run({**feeds, **past})
        past = present_as_past(outputs)
        assert_close(f"logits of {end} tokens", outputs["logits"], eager.extend(ids[:, begin:end], embeds, length))
    for (name, found), cache in zip(past.items(), [*eager.caches, *eager.second_pass], strict=True):
        assert_close(name, found[:, :, :length], cache.numpy())
        assert not found[:, :, length:].any(), name


def test_the_second_pass_s_keys_and_values_are_others_than_the_first_s(distinct: Distinct) -> None:
    """So the equalities above would notice one pass attending to the other's."""
    eager = distinct.eager
    eager.reset()
    eager.extend(distinct.prompt, distinct.embeds)
    for first, second in zip(eager.caches, eager.second_pass, strict=True):
        assert (first - second).abs().max() > 0.05 * first.abs().max()


def test_a_prompt_of_one_token_is_a_single_pass(distinct: Distinct) -> None:
    """The official rule looks at the query length alone: no second pass, no mixer."""
    prompt = np.array([[11]])
    expected = distinct.restated.prompt(prompt[0])
    assert not expected.x1  # nothing was traversed
    assert_close("logits", distinct.eager.prefill(prompt), expected.logits)
    assert distinct.eager.length == 1
    assert_close("logits of the step after", distinct.eager.decode(np.array([4]))[0], distinct.restated.step(4))


def test_two_passes_and_one_differ_by_a_lot(distinct: Distinct) -> None:
    """So the equalities above would notice a pass too many or too few."""
    ids = distinct.prompt[:, :5]
    prefilled = distinct.eager.prefill(ids)
    distinct.eager.prefill(ids[:, :1])
    for token in ids[0, 1:]:
        stepped = distinct.eager.decode(np.array([token]))
    assert np.abs(stepped - prefilled).max() > 0.05 * np.abs(prefilled).max()


# The parts that are easy to get wrong, by themselves


def test_partial_lora_adds_to_image_tokens_and_to_no_others() -> None:
    random = np.random.default_rng(0)
    x, w = random.standard_normal((5, 7)), random.standard_normal((11, 7))
    a, b = random.standard_normal((3, 7)), random.standard_normal((11, 3))
    is_image = np.array([False, True, True, False, True])
    layer = PartialLoraLinear(7, 11, rank=3).double()
    weights = {"ffn.weight": w, "lora_A.weight": a, "lora_B.weight": b}
    layer.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    expected = x @ w.T
    torch.testing.assert_close(layer(torch.tensor(x), None), torch.tensor(expected))
    for row in np.flatnonzero(is_image):
        expected[row] += b @ (a @ x[row])
    mask = torch.tensor(is_image[:, None].astype(np.float64))
    torch.testing.assert_close(layer(torch.tensor(x), mask), torch.tensor(expected))


@pytest.mark.parametrize("grid", [2, 6, 22])
def test_pixel_shuffle_is_the_v2_permutation(grid: int) -> None:
    x = np.arange(2 * grid * grid * 5, dtype=np.float32).reshape(2, grid * grid, 5)
    found = pixel_shuffle(torch.from_numpy(x), grid).numpy()
    np.testing.assert_array_equal(found, np.concatenate([pixel_shuffle_v2(crop) for crop in x]))
