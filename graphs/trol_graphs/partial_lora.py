"""Partial LoRA: a linear layer with a low-rank path that only image tokens take (InternLM2 trunk)."""

from __future__ import annotations

from torch import Tensor, nn


class PartialLoraLinear(nn.Module):
    """y = W x for every token, and y += B (A x) for image tokens.

    The official scale alpha / r is 256 / 256 = 1, and its dropout is inactive in evaluation. The path belongs to both
    passes of prefill. Decode needs W alone: without an image mask the path is not part of the graph.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False) -> None:
        super().__init__()
        self.ffn = nn.Linear(in_features, out_features, bias=bias)
        self.lora_A = nn.Linear(in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, out_features, bias=False)

    def forward(self, x: Tensor, image_mask: Tensor | None) -> Tensor:
        """x (tokens, in); image_mask (tokens, 1), 1 at image tokens and 0 elsewhere, in x's dtype; -> (tokens, out)."""
        y = self.ffn(x)
        if image_mask is None:
            return y
        return y + self.lora_B(image_mask * self.lora_A(x))
