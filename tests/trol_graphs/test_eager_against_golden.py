"""The eager fp32 model computes what the official code computed, tensor by tensor, for both trunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from official_model import OfficialModel, assert_close
from trol_graphs.named_values import recorded
from trol_graphs.ops import gate_value

GOLDEN_NAME = {"first_pass": "x1", "second_pass": "x2", "output": "mixed"}


def test_the_vision_tower_and_projector_compute_the_official_features(official: OfficialModel) -> None:
    golden = official.golden
    for picture in official.pictures:
        pixels = official.pixels(picture)
        with recorded() as values:
            embeds = official.eager.encode(pixels)
        features = values["vision.features"].numpy().reshape(*embeds.shape[:2], -1)
        found = {"vision_features": features, "projected": embeds}
        if official.golden.arch == "phi3":
            found["vit_last_hidden_tile0"] = values["vision.last_hidden"].numpy()[:1]
        for part, tensor in found.items():
            name = f"image/{picture}/{part}"
            assert_close(name, golden.thin(name, tensor), golden[name])


@pytest.mark.parametrize("case", ["img", "text"])
def test_prefill_computes_every_official_intermediate_tensor(official: OfficialModel, case: str) -> None:
    golden, eager = official.golden, official.eager

    def check(name: str, found: torch.Tensor) -> None:
        name = f"{case}/{name}"
        assert_close(name, golden.thin(name, found.numpy()), golden[name])

    with recorded() as values, torch.inference_mode():
        logits = eager.prefill(official.ids(case), official.embeds_of(case))
        check("inputs_embeds", values["inputs_embeds"][None])
        gate = eager.model.trol_gating
        for layer in range(official.layers):
            for ours, theirs in GOLDEN_NAME.items():
                check(f"layer{layer}/{theirs}", values[f"layers.{layer}.{ours}"][None])
            first = values[f"layers.{layer}.first_pass"]
            check(f"layer{layer}/gate", gate_value(first, gate.weight, gate.bias)[None])
            key, value = eager.caches[2 * layer : 2 * layer + 2]
            check(f"layer{layer}/key_cache", key)
            check(f"layer{layer}/value_cache", value)
        output = values[f"layers.{official.layers - 1}.output"]
        all_logits = eager.model.logits(output)
        norm = eager.model.get_submodule(eager.model.HEAD[0])
        check("final_norm", norm(output)[None])
    assert_close(f"{case}/prefill_logits_last", logits, golden[f"{case}/prefill_logits_last"])
    if case == "text":
        check("prefill_logits", all_logits[None])
    else:
        check("prefill_logits_text_positions", all_logits[golden["img/text_positions"]][None])


@pytest.mark.parametrize("case", ["img", "text"])
def test_decode_computes_every_official_step(official: OfficialModel, case: str) -> None:
    """Fed with the official tokens, so that every step has the official past."""
    golden, eager, ids = official.golden, official.eager, official.ids(case)
    tokens = golden[f"{case}/greedy_tokens"][0]
    logits = [eager.prefill(ids, official.embeds_of(case))]
    outputs: list[list[np.ndarray]] = [[] for _ in range(official.layers)]
    for token in tokens[:-1]:
        with recorded() as values:
            logits.append(eager.decode(np.array([token])))
        for layer, rows in enumerate(outputs):
            rows.append(values[f"layers.{layer}.output"].numpy())
    assert_close(f"{case}/greedy_logits", np.stack(logits, axis=1), golden[f"{case}/greedy_logits"])
    np.testing.assert_array_equal(np.concatenate(logits).argmax(-1), tokens)
    for layer, rows in enumerate(outputs):
        found = {"x_decode": np.concatenate(rows)[None]}
        for part, cache in zip(("key", "value"), eager.caches[2 * layer :], strict=False):
            found[f"{part}_decode"] = cache[:, :, ids.shape[1] :].numpy()
        for name, tensor in found.items():
            assert_close(f"{case}/layer{layer}/{name}", tensor, golden[f"{case}/layer{layer}/{name}"])


@pytest.mark.parametrize("case", ["img", "text"])
def test_a_prompt_in_two_parts_computes_the_official_logits_and_caches(official: OfficialModel, case: str) -> None:
    """Divided within the picture, if there is one."""
    golden, eager, ids, embeds = official.golden, official.eager, official.ids(case), official.embeds_of(case)
    half = ids.shape[1] // 2
    shown = int((ids[0, :half] == official.config.image_token_id).sum())
    first, second = (None, None) if embeds is None else (embeds[:shown], embeds[shown:])
    eager.reset()
    eager.extend(ids[:, :half], first, known=ids.shape[1])
    logits = eager.extend(ids[:, half:], second)
    assert_close(f"{case}/prefill_logits_last", logits, golden[f"{case}/prefill_logits_last"])
    for layer in range(official.layers):
        for part, cache in zip(("key", "value"), eager.caches[2 * layer :], strict=False):
            name = f"{case}/layer{layer}/{part}_cache"
            assert_close(name, golden.thin(name, cache.numpy()), golden[name])


def test_greedy_tokens_are_the_official_ones(official: OfficialModel) -> None:
    expected = official.golden["text/greedy_tokens"]
    found = official.eager.greedy(official.ids("text"), None, expected.shape[1])
    np.testing.assert_array_equal(found, expected)


def test_the_official_stop_token_comes_where_it_came(official: OfficialModel) -> None:
    stopped = official.golden["img/stop/tokens"][0]
    assert stopped[-1] == official.golden["img/stop/eos_token_id"][0]
    found = official.eager.greedy(official.ids("img"), official.embeds_of("img"), len(stopped))
    np.testing.assert_array_equal(found[0], stopped)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("case", ["batch2", "batch2text"])
def test_a_row_of_a_batch_is_that_row_alone(official: OfficialModel, case: str, row: int) -> None:
    """`row{r}_alone` is the target: left-padded batches with pictures carry a fault of the official code."""
    name, eager = f"{case}/row{row}_alone/greedy", official.eager
    tokens = official.golden[f"{name}_tokens"]
    logits = [eager.prefill(official.ids(case, row), official.embeds_of(case, row))]
    logits += [eager.decode(tokens[:, step]) for step in range(tokens.shape[1] - 1)]
    assert_close(f"{name}_logits", np.stack(logits, axis=1), official.golden[f"{name}_logits"])
    np.testing.assert_array_equal(np.concatenate(logits).argmax(-1), tokens[0])


def test_the_gate_in_force_is_the_last_entry_of_the_file(official: OfficialModel) -> None:
    gate = official.eager.model.trol_gating
    np.testing.assert_array_equal(gate.weight.numpy(), official.golden["gating_effective_weight"])
    np.testing.assert_array_equal(gate.bias.numpy(), official.golden["gating_effective_bias"])


def test_a_prompt_fed_token_by_token_is_not_a_prefill(official: OfficialModel) -> None:
    """Decode is one pass: whoever builds a prompt out of decode steps computes another model."""
    eager, ids = official.eager, official.ids("text")
    prefilled = official.golden["text/prefill_logits_last"]
    eager.prefill(ids[:, :1])
    for token in ids[0, 1:]:
        stepped = eager.decode(np.array([token]))
    # 1000 times the budget of equality, and at once: the first layer's output already differs.
    assert np.abs(stepped - prefilled).max() > 0.1 * np.abs(prefilled).max()
