"""RMSNorm as a module, for both trunks and for InternViT's rms variants."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trol_graphs.ops import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, statistic in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
