"""`trol::Mixer` in one pass over memory: one Triton kernel, one program per token, everything computed in fp32.

It equals the model-local function (graphs/trol_graphs/mixer.py), which is the definition, also where that gives
infinity or NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def trol_mixer(
    first: tl.tensor,
    second: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    mixed: tl.tensor,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """first, second, mixed (tokens, HIDDEN); weight (1, HIDDEN), bias (1): pointers to one type; the grid is (tokens,).

    WIDTH is the next power of two: a row lies in the registers of one block, so that nothing is read twice.
    """
    column = tl.arange(0, WIDTH)
    inside = column < HIDDEN
    place = tl.program_id(0).to(tl.int64) * HIDDEN + column
    x1 = tl.load(first + place, mask=inside, other=0).to(tl.float32)
    x2 = tl.load(second + place, mask=inside, other=0).to(tl.float32)
    w = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    logit = tl.sum(x1 * w) + tl.load(bias).to(tl.float32)
    # tanh by the exponential. Like fp32's own it rounds to -1 and 1, so that a gate can be shut or open entirely.
    tanh = 2 * tl.sigmoid(2 * logit) - 1
    gate = 0.5 * tanh + 0.5
    # Not x1 + gate * (x2 - x1), which at an open gate is x2 only nearly, and NaN where x1 is infinite at a shut one.
    tl.store(mixed + place, x1 * (1 - gate) + x2 * gate, mask=inside)
