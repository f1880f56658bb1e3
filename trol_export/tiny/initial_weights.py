"""The weights that a training run begins with.

Most are random. The tower's are not all: a transformer that begins without any notion of place takes long to find out
which patches are neighbours, and shapes and letters extend over several. So positions begin as waves in channels of
their own, and two heads of every layer begin by looking one patch to the left and right, or up and down.

Nor are the decoder's: it takes long to find out that a word of a question has to do with the patches that show what it
means, and nothing can be learned from pictures before. So half of the heads begin by looking at what is like the token
itself, two of each of the first two layers look at tokens up to three before it, and what a head looks at it copies: a
part of its embedding, by which the head of the model knows words. Two of the last layer look at options that say that
they are right, and copy their letters. Forms of a word begin alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trol_export.tiny.clues import LETTERS, RIGHT_CHANNEL
from trol_export.tiny.tokenizer import SPACE
from trol_graphs.model import TroLInternLM2
from trol_graphs.vision_clip import ClipVisionModel
from trol_runtime.model_config import ClipVision, Decoder, ModelConfig

DEVIATION = 0.02
TOWER_DEVIATION = 0.05
EMBEDDING_DEVIATION = 0.1  # more than the layers add at first: what a token is must not drown in it
BRANCH_SHARE = 0.5  # of the deviation, in matrices that end a residual branch: at first layers change little

# How sharply a head looks at its neighbour: most of its attention, as scores are waves' products of up to 8 and below.
_SHARPNESS = 1.2
_NEIGHBOURS = (((-1, 0), (1, 0)), ((0, -1), (0, 1)))  # (columns, rows) away, of the first heads of even and odd layers
# What a head that looks for likeness begins with: a token's score for itself is about 4, for others about 0.
_LIKENESS = 0.09
# Rotary embedding turns a token's channels by its place, the slow ones so little that likeness outlasts a whole prompt.
_PROMPT_TOKENS, _LEAST_TURN = 400, 0.1  # radians

# The channel that every word has alike, and how sharply heads look back by it: the token so many places back is
# likelier by a factor of e**3 than its neighbours, by the channels that turn most.
_ALIKE, _RECALL, _QUICK = 0.4, 1.4, 6
# How sharply heads look at an option that says that it is right.
_RIGHT = 0.8
# How far the heads of the first layers look back. From an option to its letter it is two tokens, "A", ".", " red", or
# three where a letter or digit comes behind a space of its own: "A", ".", " ", "3".
_BACK = ((2, 3), (1, 2))
# Of values and outputs, whose numbers are then about as large as random ones.
_TAKEN, _ADDED = 0.2, 0.15


def initialise(model: nn.Module, config: ModelConfig, vocabulary: Mapping[str, int], seed: int) -> None:
    """Fill every parameter of `model`, a TroL of the InternLM2 variant with or without parts around it.

    vocabulary: piece -> id
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter)
        tower = next(part for part in model.modules() if isinstance(part, ClipVisionModel))
        assert isinstance(config.vision, ClipVision)
        _place(tower, config.vision)
        trol = next(part for part in model.modules() if isinstance(part, TroLInternLM2))
        table = trol.model.tok_embeddings.weight
        _write_alike(table, vocabulary)
        table[:, 0] = _ALIKE
        table[:, RIGHT_CHANNEL] = 0
        attentions = [layer.get_submodule("attention") for layer in trol.layers]
        for attention in attentions:
            _match(attention, config.decoder)
            _copy(attention, config.decoder)
        for attention, places in zip(attentions, _BACK, strict=False):
            _look_back(attention, config.decoder, places)
        _look_at_right_options(attentions[-1], config.decoder, table[[vocabulary[letter] for letter in LETTERS]])
        trol.output.weight.copy_(table[:-1] * (DEVIATION / EMBEDDING_DEVIATION))


def _fill(name: str, parameter: Tensor) -> None:
    """Biases, paths of LoRA, the gate (half open then) and clues begin with 0, norms with 1, the rest at random."""
    if name.endswith(".bias") or any(part in name for part in ("lora_B", "trol_gating", "clue_head")):
        parameter.zero_()
    elif parameter.dim() == 1 and "class_embedding" not in name:
        parameter.fill_(1.0)
    else:
        ends_branch = name.endswith(("out_proj.weight", "fc2.weight", "wo.ffn.weight", "w2.ffn.weight"))
        parameter.normal_(std=_deviation(name) * (BRANCH_SHARE if ends_branch else 1.0))


def _deviation(name: str) -> float:
    if "tok_embeddings" in name:
        return EMBEDDING_DEVIATION
    return TOWER_DEVIATION if ".encoder.layers." in name or "patch_embedding" in name else DEVIATION


def _place(tower: ClipVisionModel, config: ClipVision) -> None:
    """Positions into the first channels, which patches then leave free, and heads that look at neighbours."""
    channels = config.hidden_size // config.heads  # as many as a head has
    position = tower.embeddings.position_embedding.weight
    position.zero_()
    position[1:, :channels] = _waves(config.grid, channels)
    tower.embeddings.patch_embedding.weight[:channels] = 0
    for number in range(config.layers):
        q, k = (tower.get_parameter(f"encoder.layers.{number}.self_attn.{name}_proj.weight") for name in "qk")
        for projection in (q, k):
            projection.normal_(std=DEVIATION)
        for head, (columns, rows) in enumerate(_NEIGHBOURS[number % 2][: config.heads]):
            own = slice(head * channels, (head + 1) * channels)
            k[own, :channels] += _SHARPNESS * torch.eye(channels)
            q[own, :channels] += _SHARPNESS * _shift(columns, rows, channels)


def _write_alike(table: Tensor, vocabulary: Mapping[str, int]) -> None:
    """A word has one embedding at first, whether or not a space is part of its piece."""
    for piece, number in vocabulary.items():
        if piece.startswith(SPACE) and piece[1:] in vocabulary:
            table[number] = table[vocabulary[piece[1:]]]


def _match(attention: nn.Module, config: Decoder) -> None:
    """The queries of the first key/value head are made as its keys are, in the channels that hardly turn."""
    slow = _slow_channels(config)
    queries_and_key = _of_groups(attention, config)[0, :-1]
    queries_and_key[:, slow] = _LIKENESS * torch.randn(len(slow), config.hidden_size)


def _look_back(attention: nn.Module, config: Decoder, places: Sequence[int]) -> None:
    """The queries of the last key/value head read a channel that every word has alike, and find it `places` back.

    Keys are the same for all words then, but for how far rotary embedding turned them; queries are turned back.
    """
    *queries, key, _ = _of_groups(attention, config)[-1]
    turns = _turns(config)
    for channel, turn in enumerate(turns[:_QUICK]):
        key[[channel, channel + len(turns)], 0] = torch.tensor([_RECALL, 0.0])
        for back, query in zip(places, queries, strict=True):
            angle = torch.tensor(back * turn)
            query[[channel, channel + len(turns)], 0] = _RECALL * torch.stack((angle.cos(), -angle.sin()))


def _look_at_right_options(attention: nn.Module, config: Decoder, letters: Tensor) -> None:
    """The queries of the last key/value head find tokens by the channel of right options, and copy letters whole.

    letters: (letters, hidden), their embeddings
    """
    *queries, key, _ = _of_groups(attention, config)[-1]
    slow = _slow_channels(config)
    key[slow, RIGHT_CHANNEL] = _RIGHT
    for query in queries:
        query[slow, 0] = _RIGHT
    others = torch.randn(config.hidden_size, config.head_dim - len(letters))
    _copy_along(attention, config, -1, torch.cat([letters.T, others], dim=1))


def _copy(attention: nn.Module, config: Decoder) -> None:
    """The heads of a key/value head add what they look at, projected onto as many directions as they are wide."""
    for group in range(config.kv_heads):
        _copy_along(attention, config, group, torch.randn(config.hidden_size, config.head_dim))


def _copy_along(attention: nn.Module, config: Decoder, group: int, directions: Tensor) -> None:
    """directions: (hidden, head width)"""
    directions, _ = torch.linalg.qr(directions)
    of_heads = attention.get_parameter("wo.ffn.weight").view(config.hidden_size, config.kv_heads, -1, config.head_dim)
    _of_groups(attention, config)[group, -1] = _TAKEN * directions.T
    of_heads[:, group] = _ADDED * directions[:, None]


def _of_groups(attention: nn.Module, config: Decoder) -> Tensor:
    """Queries, key and value of each key/value head: (kv heads, queries + 2, head width, hidden size)."""
    return attention.get_parameter("wqkv.ffn.weight").view(config.kv_heads, -1, config.head_dim, config.hidden_size)


def _slow_channels(config: Decoder) -> list[int]:
    """Those of a head that hardly turn over a whole prompt."""
    turns = [_PROMPT_TOKENS * turn for turn in _turns(config)]
    return [channel for channel in range(config.head_dim) if turns[channel % len(turns)] < _LEAST_TURN]


def _turns(config: Decoder) -> list[float]:
    """By how much rotary embedding turns channels i and i + half of the head's width from a token to the next."""
    pairs = config.head_dim // 2
    return [config.rope.theta ** (-pair / pairs) for pair in range(pairs)]


def _frequencies(channels: int) -> Tensor:
    """Of the waves along an axis, (channels / 4,): products of waves a whole number of patches apart add up to 0."""
    count = channels // 4
    return math.pi * (torch.arange(count) + 0.5) / count


def _waves(grid: int, channels: int) -> Tensor:
    """Cosines and sines of the column, then of the row, of every patch: (grid * grid, channels)."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [place.reshape(-1, 1) * _frequencies(channels) for place in (column, row)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.cos, torch.sin)], dim=1)


def _shift(columns: int, rows: int, channels: int) -> Tensor:
    """The matrix (channels, channels) that makes a patch's waves those of the patch so many columns and rows away."""
    blocks = []
    for steps in (columns, rows):
        cosine, sine = (torch.diag(wave(steps * _frequencies(channels))) for wave in (torch.cos, torch.sin))
        blocks.append(torch.cat([torch.cat([cosine, -sine], dim=1), torch.cat([sine, cosine], dim=1)]))
    return torch.block_diag(*blocks)
