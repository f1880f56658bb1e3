"""What a decoder layer is told about the tokens it runs on: the seam between the trunks and the roles."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from trol_graphs.attend import Attend, attend_to_own
from trol_graphs.ops import rotary_embedding


@dataclass(frozen=True)
class LayerContext:
    """One pass over a layer.

    batch, seq: how the 2-D activations (tokens, hidden) fall into rows; -1 for the one that is symbolic in the graph
    cos, sin: (b, s, d/2) rotary rows of these tokens
    image_mask: (tokens, 1), 1 at image tokens; None where partial LoRA is not wanted (decode) or does not exist (Phi-3)
    attend: whom the queries attend to, and what happens to keys and values: the roles differ in nothing else
    """

    batch: int
    seq: int
    cos: Tensor
    sin: Tensor
    image_mask: Tensor | None = None
    attend: Attend = attend_to_own

    def attending(self, attend: Attend) -> LayerContext:
        """The same tokens, attending to something else: the other pass, or the next layer."""
        return replace(self, attend=attend)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotate q and k, attend, lay the heads side by side: (tokens, heads over 1 or 2 axes, d) -> (tokens, h d)."""
        q, k, v = (self._heads_first(x) for x in (q, k, v))
        q, k = (rotary_embedding(x, self.cos, self.sin) for x in (q, k))
        out = self.attend(q, k, v)
        return out.transpose(1, 2).reshape(-1, out.shape[1] * out.shape[3])

    def _heads_first(self, x: Tensor) -> Tensor:
        """(tokens, heads, d) or (tokens, groups, heads of a group, d) -> (b, heads, s, d)"""
        return x.reshape(self.batch, self.seq, math.prod(x.shape[1:-1]), x.shape[-1]).transpose(1, 2)
