"""Whom queries attend to, and which keys and values are kept: all in which the roles differ inside a layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from trol_graphs.ops import attention, cache_write

# (q (b, h, s, d), k (b, g, s, d), v (b, g, s, d)), all of this step, q and k rotated -> attended (b, h, s, d)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_to_own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of a prompt to its own keys and values: square, without a mask."""
    return attention(q, k, v, None, True)


def keep_and_attend_to_own(caches: list[Tensor], written: list[Tensor]) -> Attend:
    """`attend_to_own`, the keys and values kept from position 0 of `caches` on; the new caches go to `written`."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        written.extend(cache_write(cache, rows, None) for cache, rows in zip(caches, (k, v), strict=True))
        return attend_to_own(q, k, v)

    return attend


def attend_to_cache(caches: list[Tensor], written: list[Tensor], write_index: Tensor, mask: Tensor) -> Attend:
    """Put keys and values into `caches` at `write_index` (b,), then attend to all that `mask` (b, 1, s, L) admits.

    The new caches, key and value, go to `written`.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key, value = (cache_write(cache, rows, write_index) for cache, rows in zip(caches, (k, v), strict=True))
        written.extend((key, value))
        return attention(q, key, value, mask, False)

    return attend
