"""Runs a packed batch through a model's own layers, every token exactly as an engine would compute it.

Prompt tokens go through each layer twice and are blended by the gate. Answer tokens go through it once and look at keys
and values of the first pass, as a decode step does: what is trained is what runs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trol_export.tiny.packing import IGNORED, Batch
from trol_graphs.attend import Attend
from trol_graphs.layer_context import LayerContext
from trol_graphs.model import TroLModel
from trol_graphs.ops import mixer
from trol_graphs.roles import embed_prompt
from trol_runtime.rope import rope_rows


def layer_outputs(
    model: TroLModel, batch: Batch, image_embeds: Tensor | None, *, traversal: bool = True
) -> list[Tensor]:
    """What comes out of each layer, (b * t, hidden), of prompt tokens blended.

    image_embeds: (b * image tokens, hidden), a picture for each row; None for prompts without one
    traversal:    False leaves out the second pass, as a gate of 0 would
    """
    rows, tokens = batch.ids.shape
    prompt_tokens = batch.prompt_tokens
    dtype = model.trol_gating.weight.dtype
    embeds = torch.zeros(1, model.config.decoder.hidden_size, dtype=dtype) if image_embeds is None else image_embeds
    x, image_mask = embed_prompt(model.embedding, model.config, batch.ids.reshape(-1), embeds)
    assert image_mask is not None
    cos, sin = (torch.from_numpy(x).to(dtype) for x in rope_rows(model.config.decoder, batch.positions.numpy(), tokens))
    sees = attention_bias(batch.sees, dtype)
    both = LayerContext(rows, tokens, cos, sin, image_mask, _attend(sees, batch.shared))
    prompt = LayerContext(
        rows,
        prompt_tokens,
        cos[:, :prompt_tokens],
        sin[:, :prompt_tokens],
        image_mask.reshape(rows, tokens, 1)[:, :prompt_tokens].reshape(-1, 1),
        _attend(sees[:, :, :prompt_tokens, :prompt_tokens], batch.shared),
    )
    outputs = []
    for layer in model.layers:
        x = layer(x, both)
        if traversal:
            first, answers = x.reshape(rows, tokens, -1).split([prompt_tokens, tokens - prompt_tokens], dim=1)
            mixed = _mixed(model, first.reshape(rows * prompt_tokens, -1), layer, prompt)
            x = torch.cat((mixed.reshape(rows, prompt_tokens, -1), answers), dim=1).reshape(rows * tokens, -1)
        outputs.append(x)
    return outputs


def predictions(model: TroLModel, batch: Batch, last: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of every token that has a target, and its index in the batch's flat (b * t).

    last:    (b * t, hidden), the last of `layer_outputs`
    returns: float32 (targets, vocab), int64 (targets,)
    """
    asked = (batch.targets != IGNORED).reshape(-1).nonzero().squeeze(1)
    return model.logits(last[asked]).float(), asked


def _mixed(model: TroLModel, first: Tensor, layer: torch.nn.Module, prompt: LayerContext) -> Tensor:
    second = layer(first, prompt)
    return mixer(first, second, model.trol_gating.weight, model.trol_gating.bias)


def answer_loss(logits: Tensor, asked: Tensor, batch: Batch, untold: Tensor | None = None) -> Tensor:
    """Weighted mean of the cross-entropies, a scalar.

    untold: bool (targets, vocab), tokens that count as impossible: no loss says how likely they are
    """
    if untold is not None:
        logits = logits.masked_fill(untold, -math.inf)
    weights = batch.weights.reshape(-1)[asked]
    losses = F.cross_entropy(logits, batch.targets.reshape(-1)[asked], reduction="none")
    return (losses * weights).sum() / weights.sum()


def right_answers(logits: Tensor, asked: Tensor, batch: Batch) -> dict[tuple[int, int], bool]:
    """Whether greedy decoding would answer with exactly the answer due, by row and number of the question.

    If every token is the most probable one after the right ones before it, greedy decoding finds them all.
    """
    right = (logits.argmax(-1) == batch.targets.reshape(-1)[asked]).tolist()
    rows = (asked // batch.ids.shape[1]).tolist()
    numbers = batch.questions.reshape(-1)[asked].tolist()
    found: dict[tuple[int, int], bool] = {}
    for row, number, token_is_right in zip(rows, numbers, right, strict=True):
        found[row, number] = found.get((row, number), True) and token_is_right
    return found


def attention_bias(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """bool to what is added to attention scores: 0 or minus infinity."""
    return torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, -math.inf)


def _attend(bias: Tensor, shared: int) -> Attend:
    """Attention under a bias; the first `shared` tokens, which see only one another, are spared the rest."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        beginning = F.scaled_dot_product_attention(
            q[:, :, :shared], k[:, :, :shared], v[:, :, :shared], is_causal=True, enable_gqa=True
        )
        rest = F.scaled_dot_product_attention(q[:, :, shared:], k, v, bias[:, :, shared:], enable_gqa=True)
        return torch.cat((beginning, rest), dim=2)

    return attend
