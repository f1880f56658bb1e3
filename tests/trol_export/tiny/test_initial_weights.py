"""The weights before training: random ones of a seed, in a tower and a decoder that know where to look."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from trol_export.tiny.clues import LETTERS, RIGHT_CHANNEL
from trol_export.tiny.initial_weights import _shift, _waves
from trol_export.tiny.lessons import tokenizer_and_config
from trol_export.tiny.tokenizer import SPACE
from trol_export.tiny.training import TinyModel
from trol_graphs.layer_context import LayerContext
from trol_runtime.rope import rope_rows

GRID, CHANNELS = 12, 64
DECODER = tokenizer_and_config()[1].decoder


def tiny_model(seed: int) -> TinyModel:
    tokenizer, config = tokenizer_and_config()
    return TinyModel(config, tokenizer["model"]["vocab"], seed)


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_model(0)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(model: TinyModel) -> None:
    same, other = tiny_model(0).state_dict(), tiny_model(1).state_dict()
    assert all(same[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert not other["patch_head.weight"].equal(same["patch_head.weight"])


def test_every_weight_is_a_finite_number_and_the_gate_is_half_open(model: TinyModel) -> None:
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not model.trol.trol_gating.weight.any()
    assert not model.trol.trol_gating.bias.any()


@pytest.mark.parametrize(("columns", "rows"), [(-1, 0), (1, 0), (0, -1), (0, 1), (2, -3)])
def test_a_shift_of_waves_is_the_waves_of_the_patch_that_lies_there(columns: int, rows: int) -> None:
    waves = _waves(GRID, CHANNELS).reshape(GRID, GRID, CHANNELS)
    shifted = waves[5, 5] @ _shift(columns, rows, CHANNELS).T
    # fp32: sums of products of numbers up to 1
    torch.testing.assert_close(shifted, waves[5 + rows, 5 + columns], rtol=0, atol=1e-5)


def test_waves_of_patches_in_other_rows_and_columns_do_not_resemble_each_other() -> None:
    waves = _waves(GRID, CHANNELS).reshape(GRID, GRID, CHANNELS)
    likeness = (waves @ waves[5, 5]).round(decimals=3)
    assert likeness[5, 5] == CHANNELS / 2
    same_line = (torch.arange(GRID) == 5)[:, None] ^ (torch.arange(GRID) == 5)[None]
    assert (likeness[same_line] == CHANNELS / 4).all()
    assert (likeness[~same_line].abs().sort().values[:-1] == 0).all()


@pytest.mark.parametrize(
    ("layer", "head", "columns", "rows"), [(0, 0, -1, 0), (0, 1, 1, 0), (1, 0, 0, -1), (1, 1, 0, 1), (5, 1, 0, 1)]
)
def test_the_first_two_heads_of_a_layer_look_at_neighbours(
    model: TinyModel, layer: int, head: int, columns: int, rows: int
) -> None:
    tower = model.trol.get_submodule("vit.vision_tower.vision_model")
    attention = tower.get_submodule(f"encoder.layers.{layer}.self_attn")
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 168, 168)).astype(np.float32))
    with torch.no_grad():
        x = tower.get_submodule("pre_layrnorm")(tower.get_submodule("embeddings")(pixels)[0])
        own = slice(head * CHANNELS, (head + 1) * CHANNELS)
        q, k = (attention.get_submodule(name)(x)[:, own] for name in ("q_proj", "k_proj"))
        shares = (q @ k.T / CHANNELS**0.5).softmax(-1)
    here = 1 + 5 * GRID + 5
    there = here + rows * GRID + columns
    assert shares[here].argmax() == there
    assert shares[here, there] > 0.15  # 20 times the share of one among 145 that are all alike


def test_a_word_begins_with_one_embedding_with_a_space_before_it_and_without(model: TinyModel) -> None:
    vocabulary = tokenizer_and_config()[0]["model"]["vocab"]
    table = model.trol.get_parameter("model.tok_embeddings.weight")
    for word in ("star", "red", "How"):
        assert table[vocabulary[word]].equal(table[vocabulary[f"{SPACE}{word}"]])
    assert not table[vocabulary["star"]].equal(table[vocabulary["red"]])


@pytest.mark.parametrize("distance", [0, 20, 300])
def test_half_of_the_decoders_heads_look_for_what_is_like_the_token_however_far_away(
    model: TinyModel, distance: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((50, DECODER.hidden_size)).astype(np.float32))
    for group, finds in ((0, True), (1, False)):
        *queries, keys = queries_and_keys(model, 2, group, x)
        for q in queries:
            q_there, k = rotated(q, [distance] * 50), rotated(keys, [0] * 50)
            on_itself = (q_there @ k.T / DECODER.head_dim**0.5).softmax(1).diagonal().mean()
            assert on_itself > 0.2 if finds else on_itself < 0.03  # of 50 that are all alike: 0.02


@pytest.mark.parametrize(("layer", "places"), [(0, (2, 3)), (1, (1, 2))])
def test_two_heads_of_the_first_layers_look_so_many_tokens_back(
    model: TinyModel, layer: int, places: tuple[int, int]
) -> None:
    count = 300
    x = normalised(model.trol.get_parameter("model.tok_embeddings.weight")[:count].detach())
    *queries, keys = queries_and_keys(model, layer, 1, x)
    k = rotated(keys, range(count))
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    for back, q in zip(places, queries, strict=True):
        scores = (rotated(q, range(count)) @ k.T / DECODER.head_dim**0.5).masked_fill(later, -torch.inf)
        shares = scores.softmax(1).diagonal(-back)
        assert shares.median() > 0.7
        assert (shares > 0.3).float().mean() > 0.9  # what is random in queries and keys makes some miss it


@pytest.mark.parametrize("distance", [0, 20, 300])
def test_two_heads_of_the_last_layer_look_at_an_option_that_says_that_it_is_right(
    model: TinyModel, distance: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((20, DECODER.hidden_size)).astype(np.float32))
    x[:, 0], x[:, RIGHT_CHANNEL] = 1.5, 0
    x[7, RIGHT_CHANNEL] = 1.5
    for layer, finds in ((DECODER.layers - 1, True), (DECODER.layers - 2, False)):
        *queries, keys = queries_and_keys(model, layer, 1, x)
        for q in queries:
            q_there, k = rotated(q, [distance] * 20), rotated(keys, [0] * 20)
            on_it = (q_there @ k.T / DECODER.head_dim**0.5).softmax(1)[:, 7].mean()
            assert on_it > 0.3 if finds else on_it < 0.1  # of 20 that are all alike: 0.05


def test_letters_of_options_are_copied_whole_by_them(model: TinyModel) -> None:
    vocabulary = tokenizer_and_config()[0]["model"]["vocab"]
    letters = model.trol.get_parameter("model.tok_embeddings.weight")[
        [vocabulary[letter] for letter in LETTERS]
    ].detach()
    values = queries_keys_and_values(model, DECODER.layers - 1, 1, letters)[-1]
    # An orthonormal basis of their span keeps lengths; of other directions a fourth is left.
    torch.testing.assert_close(values.norm(dim=1), 0.2 * letters.norm(dim=1), rtol=1e-5, atol=0)


def test_what_a_decoder_layer_looks_at_is_known_again_by_the_models_head(model: TinyModel) -> None:
    table = model.trol.get_parameter("model.tok_embeddings.weight")[:-1].detach()
    unturned = torch.ones(len(table), 1, DECODER.head_dim // 2)
    alone = LayerContext(len(table), 1, unturned, 0 * unturned)
    for layer in range(DECODER.layers):
        with torch.no_grad():
            looked_at = model.trol.get_submodule(f"model.layers.{layer}.attention")(normalised(table), alone)
            logits = model.trol.get_submodule("output")(looked_at)
        # Forms of a word share an embedding: the best logit, not the only one.
        assert (logits.diagonal() == logits.max(1).values).float().mean() > 0.99


def queries_and_keys(model: TinyModel, layer: int, group: int, x: torch.Tensor) -> list[torch.Tensor]:
    """The queries of a key/value head, then its keys, of x (n, hidden): each (n, head width)."""
    return queries_keys_and_values(model, layer, group, x)[:-1]


def queries_keys_and_values(model: TinyModel, layer: int, group: int, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model.trol.get_submodule(f"model.layers.{layer}.attention.wqkv.ffn")(x)
    return list(found.reshape(len(x), DECODER.kv_heads, -1, DECODER.head_dim)[:, group].unbind(1))


def normalised(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().mean(1, keepdim=True).sqrt()


def rotated(x: torch.Tensor, positions: Iterable[int]) -> torch.Tensor:
    """Queries or keys (n, head width) as they are at these positions."""
    cos, sin = (torch.from_numpy(table)[0] for table in rope_rows(DECODER, np.array([list(positions)]), 1))
    first, second = x.chunk(2, dim=1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=1)
