"""The mixer's kernel in Triton's interpreter, which needs no GPU.

Triton decides between compiling and interpreting when a kernel is imported, so it is interpreted in another process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np

Values = Mapping[str, np.ndarray]  # first, second, weight, bias: float32
Interpreter = Callable[[Values, str], np.ndarray]  # values and the type they are rounded to -> mixed, float32


@contextmanager
def interpreter() -> Iterator[Interpreter]:
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        yield lambda values, dtype: other.submit(_run, values, dtype).result()


def _run(values: Values, dtype: str) -> np.ndarray:
    """One launch. The output lies in a larger array; raises AssertionError when the kernel writes beside it."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    import triton

    from trol_engines.mixer_kernel import trol_mixer

    first, second, weight, bias = (
        torch.from_numpy(values[name]).to(getattr(torch, dtype)) for name in ("first", "second", "weight", "bias")
    )
    tokens, hidden = first.shape
    width = triton.next_power_of_2(hidden)
    untouched = torch.full((first.numel() + 2 * width,), 77, dtype=first.dtype)
    mixed = untouched[width : width + first.numel()]
    with np.errstate(all="ignore"):
        trol_mixer[(tokens,)](first, second, weight, bias, mixed, HIDDEN=hidden, WIDTH=width)
    assert (untouched[:width] == 77).all()
    assert (untouched[width + first.numel() :] == 77).all()
    return mixed.reshape(tokens, hidden).float().numpy()
