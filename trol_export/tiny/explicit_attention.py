"""Attention as two matrix products and a softmax, for training on a CPU.

torch's fused attention saves memory that sequences this short do not need, and its backward pass does not use a CPU's
bfloat16 matrix units. Inside `explicit_attention` modules run unchanged, several times faster in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class explicit_attention(TorchFunctionMode):
    """`with explicit_attention():` scaled_dot_product_attention is computed in bfloat16 step by step."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, is_causal: bool = False, enable_gqa: bool = False
) -> Tensor:
    """q (b, h, s, d); k, v (b, g, m, d), query head j reading key/value head j // (h/g); bias (b, 1, s, m) to be added
    to the scores or None; -> (b, h, s, d)."""
    b, h, s, d = q.shape
    g = k.shape[1]
    assert bias is None or bias.is_floating_point(), "a mask of truth values is not what is added to scores"
    if is_causal:
        bias = torch.full((1, 1, s, s), -torch.inf, dtype=torch.bfloat16).triu(1)
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.bfloat16() for x in (q, k, v))
        # The query heads of a key/value head side by side, as if they were more queries: nothing needs repeating.
        scores = (q * d**-0.5).reshape(b, g, h // g * s, d) @ k.transpose(-1, -2)
        if bias is not None:
            scores.view(b, g, h // g, s, -1).add_(bias[:, :, None])
        return (scores.softmax(-1) @ v).reshape(b, h, s, d)
