"""The InternViT tower of TroL-3.8B, and the pixel shuffle that turns 2 x 2 patches into one token.

Parameter names are the checkpoint's keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trol_graphs.named_values import named
from trol_graphs.norm import RMSNorm
from trol_graphs.ops import attention
from trol_runtime.model_config import InternVitVision


class InternVitEmbeddings(nn.Module):
    def __init__(self, config: InternVitVision) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patches_shape = (width, config.grid**2)
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch)
        # The official code re-interpolates this table to the input grid in every call: the identity at its own size.
        self.position_embedding = nn.Parameter(torch.empty(1, config.grid**2 + 1, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (crops, 3, h, w) -> (crops, 1 + patches, width), the class token first"""
        patches = self.patch_embedding(pixels)
        patches = patches.reshape(-1, *self.patches_shape).transpose(1, 2)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat((class_token, patches), dim=1) + self.position_embedding


class InternVitAttention(nn.Module):
    def __init__(self, config: InternVitVision) -> None:
        super().__init__()
        self.heads = config.heads
        self.tokens = config.grid**2 + 1
        width = config.hidden_size
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        # Over all heads' channels together, as the official code does it.
        self.q_norm = RMSNorm(width, config.layer_norm_eps) if config.qk_normalization else nn.Identity()
        self.k_norm = RMSNorm(width, config.layer_norm_eps) if config.qk_normalization else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (crops * tokens, width) -> the same shape; every token attends to every token of its crop"""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (self._heads_first(x) for x in (self.q_norm(q), self.k_norm(k), v))
        out = attention(q, k, v, None, False)
        return self.proj(out.transpose(1, 2).reshape(-1, x.shape[1]))

    def _heads_first(self, x: Tensor) -> Tensor:
        """(crops * tokens, width) -> (crops, heads, tokens, width / heads)"""
        return x.reshape(-1, self.tokens, self.heads, x.shape[1] // self.heads).transpose(1, 2)


class InternVitMLP(nn.Module):
    def __init__(self, config: InternVitVision) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (crops * tokens, width) -> the same shape"""
        return self.fc2(F.gelu(self.fc1(x)))


class InternVitLayer(nn.Module):
    """Pre-norm, each branch scaled per channel (ls1, ls2)."""

    def __init__(self, config: InternVitVision) -> None:
        super().__init__()
        norm = RMSNorm if config.norm_type == "rms_norm" else nn.LayerNorm
        self.ls1 = nn.Parameter(torch.empty(config.hidden_size))
        self.ls2 = nn.Parameter(torch.empty(config.hidden_size))
        self.attn = InternVitAttention(config)
        self.mlp = InternVitMLP(config)
        self.norm1 = norm(config.hidden_size, config.layer_norm_eps)
        self.norm2 = norm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x (crops * tokens, width) -> the same shape"""
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class InternVitEncoder(nn.Module):
    def __init__(self, config: InternVitVision) -> None:
        super().__init__()
        self.layers = nn.ModuleList(InternVitLayer(config) for _ in range(config.layers))


class InternVitTower(nn.Module):
    def __init__(self, config: InternVitVision) -> None:
        super().__init__()
        self.grid = config.grid
        self.embeddings = InternVitEmbeddings(config)
        self.encoder = InternVitEncoder(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (crops, 3, h, w), normalised -> features (crops * patches / 4, 4 * width); no final norm"""
        x = self.embeddings(pixels)
        tokens, width = x.shape[1:]
        x = x.reshape(-1, width)
        for layer in self.encoder.layers:
            x = layer(x)
        x = named(x.reshape(-1, tokens, width), "vision.last_hidden")
        return named(pixel_shuffle(x[:, 1:], self.grid), "vision.features")


def pixel_shuffle(x: Tensor, grid: int) -> Tensor:
    """Lay the channels of each 2 x 2 block of patches side by side: (crops, grid^2, C) -> (crops * grid^2 / 4, 4 C).

    out[r, c, (dr * 2 + dc) * C + k] = in[2 r + dr, 2 c + dc, k], tokens row-major: the official "v2" permutation, which
    the official code uses whatever the config's `ps_version` says.
    """
    half, channels = grid // 2, x.shape[-1]
    # The crops and the rows of blocks stay one axis, so that the only symbolic axis is the first.
    x = x.reshape(-1, 2, half, 2, channels)  # (crops * row, dr, column, dc, C)
    return x.transpose(1, 2).reshape(-1, 4 * channels)
