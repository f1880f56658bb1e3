"""The Phi-3 decoder of TroL-3.8B: plain q|k|v rows, one gate-and-up matrix, no biases, no LoRA.

Parameter names are the checkpoint's keys. Its RoPE variants live in the rows it is given (`trol_runtime.rope`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trol_graphs.layer_context import LayerContext
from trol_graphs.norm import RMSNorm
from trol_runtime.model_config import Decoder


class Phi3Attention(nn.Module):
    def __init__(self, config: Decoder) -> None:
        super().__init__()
        self.heads_qkv = [config.heads, config.kv_heads, config.kv_heads]
        self.heads_shape = (-1, sum(self.heads_qkv), config.head_dim)
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.heads_qkv) * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """x (tokens, hidden) -> (tokens, hidden)"""
        q, k, v = self.qkv_proj(x).reshape(self.heads_shape).split(self.heads_qkv, dim=1)
        return self.o_proj(context.attention(q, k, v))


class Phi3MLP(nn.Module):
    def __init__(self, config: Decoder) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """SwiGLU: x (tokens, hidden) -> (tokens, hidden)"""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate))


class Phi3Layer(nn.Module):
    def __init__(self, config: Decoder) -> None:
        super().__init__()
        self.self_attn = Phi3Attention(config)
        self.mlp = Phi3MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """One pass: x (tokens, hidden) -> (tokens, hidden)"""
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Phi3Trunk(nn.Module):
    """Embedding, layers and final norm; <IMG_CONTEXT> is an ordinary row of the vocabulary."""

    def __init__(self, config: Decoder) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.embedding_rows, config.hidden_size)
        self.layers = nn.ModuleList(Phi3Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Phi3LanguageModel(nn.Module):
    """Trunk and head under the checkpoint's prefix `language_model`."""

    def __init__(self, config: Decoder) -> None:
        super().__init__()
        self.model = Phi3Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
