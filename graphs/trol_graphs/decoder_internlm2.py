"""The InternLM2 decoder of TroL-1.8B and 7B: grouped-query attention in one interleaved matrix, SwiGLU, partial LoRA.

Parameter names are the checkpoint's keys.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trol_graphs.layer_context import LayerContext
from trol_graphs.norm import RMSNorm
from trol_graphs.partial_lora import PartialLoraLinear
from trol_runtime.model_config import Decoder


class InternLM2Attention(nn.Module):
    def __init__(self, config: Decoder) -> None:
        super().__init__()
        # Rows of wqkv are grouped by key/value head: h/g query heads, one key head, one value head, d rows each.
        self.group = [config.heads // config.kv_heads, 1, 1]
        self.grouped_shape = (-1, config.kv_heads, sum(self.group), config.head_dim)
        hidden, rank, bias = config.hidden_size, config.lora_rank, config.attention_bias
        self.wqkv = PartialLoraLinear(hidden, (config.heads + 2 * config.kv_heads) * config.head_dim, rank, bias)
        self.wo = PartialLoraLinear(hidden, hidden, rank, bias)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """x (tokens, hidden) -> (tokens, hidden)"""
        q, k, v = self.wqkv(x, context.image_mask).reshape(self.grouped_shape).split(self.group, dim=2)
        return self.wo(context.attention(q, k, v), context.image_mask)


class InternLM2MLP(nn.Module):
    def __init__(self, config: Decoder) -> None:
        super().__init__()
        hidden, inner, rank = config.hidden_size, config.intermediate_size, config.lora_rank
        self.w1 = PartialLoraLinear(hidden, inner, rank)
        self.w2 = PartialLoraLinear(inner, hidden, rank)
        self.w3 = PartialLoraLinear(hidden, inner, rank)

    def forward(self, x: Tensor, image_mask: Tensor | None) -> Tensor:
        """SwiGLU: x (tokens, hidden), image_mask (tokens, 1) or None -> (tokens, hidden)"""
        return self.w2(F.silu(self.w1(x, image_mask)) * self.w3(x, image_mask), image_mask)


class InternLM2Layer(nn.Module):
    def __init__(self, config: Decoder) -> None:
        super().__init__()
        self.attention = InternLM2Attention(config)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """One pass: x (tokens, hidden) -> (tokens, hidden)"""
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.feed_forward(self.ffn_norm(x), context.image_mask)


class InternLM2Trunk(nn.Module):
    """Embedding, layers and final norm; the embedding's last row stands for <image> and is never read as text."""

    def __init__(self, config: Decoder) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.embedding_rows, config.hidden_size)
        self.layers = nn.ModuleList(InternLM2Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
