"""The weights that a training run begins with.

Most are random. The tower's are not all: a transformer that begins without any notion of place takes long to find out
which patches are neighbours, and shapes and letters extend over several. So positions begin as waves in channels of
their own, and two heads of every layer begin by looking one patch to the left and right, or up and down.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trol_graphs.vision_clip import ClipVisionModel
from trol_runtime.model_config import ClipVision, ModelConfig

DEVIATION = 0.02
TOWER_DEVIATION = 0.05
BRANCH_SHARE = 0.5  # of the deviation, in matrices that end a residual branch: at first layers change little

# How sharply a head looks at its neighbour: most of its attention, as scores are waves' products of up to 8 and below.
_SHARPNESS = 1.2
_NEIGHBOURS = (((-1, 0), (1, 0)), ((0, -1), (0, 1)))  # (columns, rows) away, of the first heads of even and odd layers


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of `model`, a TroL of the InternLM2 variant with or without parts around it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter)
        tower = next(part for part in model.modules() if isinstance(part, ClipVisionModel))
        assert isinstance(config.vision, ClipVision)
        _place(tower, config.vision)


def _fill(name: str, parameter: Tensor) -> None:
    """Biases, the paths of LoRA and the gate (half open then) begin with 0, norms with 1, the rest at random."""
    if name.endswith(".bias") or "lora_B" in name or "trol_gating" in name:
        parameter.zero_()
    elif parameter.dim() == 1 and "class_embedding" not in name:
        parameter.fill_(1.0)
    else:
        deviation = TOWER_DEVIATION if ".encoder.layers." in name or "patch_embedding" in name else DEVIATION
        ends_branch = name.endswith(("out_proj.weight", "fc2.weight", "wo.ffn.weight", "w2.ffn.weight"))
        parameter.normal_(std=deviation * (BRANCH_SHARE if ends_branch else 1.0))


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
