"""The roles: what becomes one ONNX graph is one module here, with tensors in and tensors out.

Traversal of layers is the loop in `Prefill.forward`: every layer twice, then the mixer (paper: section 3). The official
code chooses by the query length alone, so a prompt of one token is a decode step. `Extend` has no counterpart there: it
continues a prompt exactly, so its last token is traversed even when it comes alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trol_graphs.attend import attend_to_cache, keep_and_attend_to_own
from trol_graphs.layer_context import LayerContext
from trol_graphs.model import TroLModel
from trol_graphs.named_values import named
from trol_graphs.ops import mixer
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
        prompt = LayerContext(1, -1, cos, sin, image_mask)
        present: list[Tensor] = []
        for index, layer in enumerate(self.model.layers):
            first = prompt.attending(keep_and_attend_to_own(of_layer(past_key_values, index), present))
            x = traverse(layer, index, x, first, prompt, self.model.trol_gating)
        return self.model.logits(x[-1:]), present


class Extend(nn.Module):
    """Like `Prefill`, after a prefix: either pass attends to what the same pass left in a cache of its own.

    That is what makes a prompt in parts equal to a prompt at once: in a prefill the second pass attends to keys and
    values of the second pass, of which `Prefill` keeps none.
    """

    def __init__(self, model: TroLModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        image_embeds: Tensor,
        cos: Tensor,
        sin: Tensor,
        write_index: Tensor,
        attention_mask: Tensor,
        past_key_values: list[Tensor],
        past_second_pass: list[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits of the last position and the caches of both passes with these tokens in place.

        input_ids, image_embeds, cos, sin: as in `Prefill`, of the new tokens alone
        write_index: int64 (1,), tokens of the prefix
        attention_mask: bool (1, 1, s, L), True where the token of that row may look: prefix, itself and what lies
          between
        past_key_values, past_second_pass: caches of the first and of the second pass, each like those of `Prefill`
        returns: logits (1, vocab), both lists of caches in the same order
        """
        x, image_mask = embed_prompt(self.model.embedding, self.model.config, input_ids.reshape(-1), image_embeds)
        part = LayerContext(1, -1, cos, sin, image_mask)
        present: list[Tensor] = []
        present_second: list[Tensor] = []
        for index, layer in enumerate(self.model.layers):
            first, second = (
                part.attending(attend_to_cache(of_layer(past, index), written, write_index, attention_mask))
                for past, written in ((past_key_values, present), (past_second_pass, present_second))
            )
            x = traverse(layer, index, x, first, second, self.model.trol_gating)
        return self.model.logits(x[-1:]), present, present_second


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
        token = LayerContext(-1, 1, cos, sin)
        present: list[Tensor] = []
        for index, layer in enumerate(self.model.layers):
            attend = attend_to_cache(of_layer(past_key_values, index), present, write_index, attention_mask)
            x = run_once(layer, index, x, token.attending(attend))
        return self.model.logits(x), present


def traverse(
    layer: nn.Module, index: int, x: Tensor, first: LayerContext, second: LayerContext, gate: nn.Module
) -> Tensor:
    """Run layer number `index` twice over a prompt, each pass in its context, and blend them: (s, hidden) -> same."""
    first_pass = named(layer(x, first), f"layers.{index}.first_pass")
    second_pass = named(layer(first_pass, second), f"layers.{index}.second_pass")
    weight, bias = gate.get_parameter("weight"), gate.get_parameter("bias")
    return named(mixer(first_pass, second_pass, weight, bias), f"layers.{index}.output")


def run_once(layer: nn.Module, index: int, x: Tensor, context: LayerContext) -> Tensor:
    """Run layer number `index` over one token per row: (b, hidden) -> same."""
    return named(layer(x, context), f"layers.{index}.output")


def of_layer(caches: list[Tensor], index: int) -> list[Tensor]:
    """Key and value cache of one layer."""
    return caches[2 * index : 2 * index + 2]


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
