"""The three roles: what becomes one ONNX graph is one module here, with tensors in and tensors out.

Traversal of layers is the loop in `Prefill.forward`: every layer twice, then the mixer (paper: section 3). The official
code chooses by the query length alone, so a prompt of one token is a decode step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trol_graphs.layer_context import LayerContext
from trol_graphs.model import TroLModel
from trol_graphs.named_values import named
from trol_graphs.ops import attention, cache_write, mixer
from trol_runtime.model_config import ModelConfig


class Vision(nn.Module):
    """pixel_values (crops, 3, h, w) -> image_embeds (crops, tokens, hidden), projector included."""

    def __init__(self, model: TroLModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        embeds = self.model.vision_proj(self.model.vision_features(pixel_values))
        return embeds.reshape(-1, self.model.config.vision.tokens_per_crop, embeds.shape[-1])


class Prefill(nn.Module):
    """One sequence, every layer twice; the first pass's keys and values are cached, both passes attend to their own."""

    def __init__(self, model: TroLModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, image_embeds: Tensor, cos: Tensor, sin: Tensor, past_key_values: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of the last position and the written caches.

        input_ids: int64 (1, s)
        image_embeds: (n, hidden), one per image token in order; one unused row when there is no picture
        cos, sin: (1, s, d/2)
        past_key_values: key and value cache of layer 0, of layer 1, ..., each (1, g, L, d) with L >= s; positions 0 to
          s - 1 are written
        returns: logits (1, vocab), the caches in the same order
        """
        x, image_mask = embed_prompt(self.model.embedding, self.model.config, input_ids.reshape(-1), image_embeds)
        present: list[Tensor] = []
        for index, layer in enumerate(self.model.layers):
            caches = past_key_values[2 * index : 2 * index + 2]
            x, written = traverse(layer, index, x, image_mask, cos, sin, caches, self.model.trol_gating)
            present += written
        return self.model.logits(x[-1:]), present


class Decode(nn.Module):
    """One token per row, one pass, no mixer, no LoRA; attention over the cache with an explicit mask."""

    def __init__(self, model: TroLModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        token_ids: Tensor,
        cos: Tensor,
        sin: Tensor,
        write_index: Tensor,
        attention_mask: Tensor,
        past_key_values: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of every row and the caches with this step's keys and values in place.

        token_ids: int64 (b,)
        cos, sin: (b, 1, d/2)
        write_index: int64 (b,), the position this token takes in its row of the cache
        attention_mask: bool (b, 1, 1, L), True where the row's cache is valid, this token included
        past_key_values: as in `Prefill`, each (b, g, L, d)
        returns: logits (b, vocab), the caches in the same order
        """
        x = self.model.embedding(token_ids)
        present: list[Tensor] = []
        for index, layer in enumerate(self.model.layers):
            caches = past_key_values[2 * index : 2 * index + 2]
            x, written = decode_layer(layer, index, x, cos, sin, write_index, attention_mask, caches)
            present += written
        return self.model.logits(x), present


def traverse(
    layer: nn.Module,
    index: int,
    x: Tensor,
    image_mask: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    caches: list[Tensor],
    gate: nn.Module,
) -> tuple[Tensor, list[Tensor]]:
    """Run layer number `index` twice over a prompt and blend the passes: x (s, hidden) -> (s, hidden), written caches.

    Only the first pass's keys and values are kept; the second attends to those it computes itself.
    """
    written: list[Tensor] = []

    def attend_and_keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        written.extend(cache_write(cache, rows, None) for cache, rows in zip(caches, (k, v), strict=True))
        return attend_to_own(q, k, v)

    first = layer(x, LayerContext(1, -1, cos, sin, attend_and_keep, image_mask))
    first = named(first, f"layers.{index}.first_pass")
    second = layer(first, LayerContext(1, -1, cos, sin, attend_to_own, image_mask))
    second = named(second, f"layers.{index}.second_pass")
    return named(mixer(first, second, gate.weight, gate.bias), f"layers.{index}.output"), written


def decode_layer(
    layer: nn.Module,
    index: int,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    write_index: Tensor,
    attention_mask: Tensor,
    caches: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Run layer number `index` once over one token per row: x (b, hidden) -> (b, hidden), written caches."""
    written: list[Tensor] = []

    def attend_to_cache(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        written.extend(cache_write(cache, rows, write_index) for cache, rows in zip(caches, (k, v), strict=True))
        key, value = written
        return attention(q, key, value, attention_mask, False)

    x = layer(x, LayerContext(-1, 1, cos, sin, attend_to_cache))
    return named(x, f"layers.{index}.output"), written


def attend_to_own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of a prompt to its own keys and values: square, without a mask."""
    return attention(q, k, v, None, True)


def embed_prompt(
    embedding: nn.Module, config: ModelConfig, ids: Tensor, image_embeds: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Token embeddings with the image embeddings dealt to the image tokens in order.

    ids: int64 (s,)
    image_embeds: (n, hidden)
    returns: x (s, hidden); image mask (s, 1) in x's dtype, or None where the decoder has no partial LoRA
    """
    is_image = ids == config.image_token_id
    # Image token number j takes row j. Text before the first image token would ask for row -1: any valid row will do.
    row = (torch.cumsum(is_image.to(torch.int64), 0) - 1).clamp(min=0)
    is_image = is_image.unsqueeze(1)
    x = torch.where(is_image, image_embeds.index_select(0, row), embedding(ids))
    lora = config.decoder.lora_rank > 0
    return named(x, "inputs_embeds"), is_image.to(x.dtype) if lora else None
