"""The CLIP ViT tower of TroL-1.8B and 7B: raw output of its last layer, class token dropped, no final norm.

Parameter names are the checkpoint's keys (Hugging Face CLIP names, `pre_layrnorm` included).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trol_graphs.named_values import named
from trol_graphs.ops import attention
from trol_runtime.model_config import ClipVision


class ClipEmbeddings(nn.Module):
    def __init__(self, config: ClipVision) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patches_shape = (width, config.grid**2)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.grid**2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (crops, 3, h, w) -> (crops, 1 + patches, width), the class token first"""
        patches = self.patch_embedding(pixels)
        patches = patches.reshape(-1, *self.patches_shape).transpose(1, 2)
        class_token = self.class_embedding.reshape(1, 1, -1).expand(patches.shape[0], 1, -1)
        return torch.cat((class_token, patches), dim=1) + self.position_embedding.weight


class ClipAttention(nn.Module):
    def __init__(self, config: ClipVision) -> None:
        super().__init__()
        self.heads = config.heads
        self.tokens = config.grid**2 + 1
        width = config.hidden_size
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (crops * tokens, width) -> the same shape; every token attends to every token of its crop"""
        q, k, v = (self._heads_first(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = attention(q, k, v, None, False)
        return self.out_proj(out.transpose(1, 2).reshape(-1, x.shape[1]))

    def _heads_first(self, x: Tensor) -> Tensor:
        """(crops * tokens, width) -> (crops, heads, tokens, width / heads)"""
        return x.reshape(-1, self.tokens, self.heads, x.shape[1] // self.heads).transpose(1, 2)


class ClipMLP(nn.Module):
    def __init__(self, config: ClipVision) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (crops * tokens, width) -> the same shape"""
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # quick GELU


class ClipLayer(nn.Module):
    def __init__(self, config: ClipVision) -> None:
        super().__init__()
        self.self_attn = ClipAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = ClipMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x (crops * tokens, width) -> the same shape"""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipEncoder(nn.Module):
    def __init__(self, config: ClipVision) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.layers))


class ClipVisionModel(nn.Module):
    # `post_layernorm` is in the checkpoint and never applied: the released models read the last layer's raw output.
    def __init__(self, config: ClipVision) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = ClipEncoder(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (crops, 3, h, w), normalised -> features (crops * patches, width), row-major within a crop"""
        x = self.embeddings(pixels)
        tokens, width = x.shape[1:]
        x = self.pre_layrnorm(x.reshape(-1, width))
        for layer in self.encoder.layers:
            x = layer(x)
        x = named(x.reshape(-1, tokens, width), "vision.last_hidden")
        return named(x[:, 1:].reshape(-1, width), "vision.features")


class ClipVisionTower(nn.Module):
    def __init__(self, config: ClipVision) -> None:
        super().__init__()
        self.vision_model = ClipVisionModel(config)


class ClipTower(nn.Module):
    """The checkpoint's nesting: vit.vision_tower.vision_model."""

    def __init__(self, config: ClipVision) -> None:
        super().__init__()
        self.vision_tower = ClipVisionTower(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision_tower.vision_model(pixels)
