"""KVCache: rounded up in steps, zeroed, grown without losing anything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from small_engine import SMALL_MODEL
from trol_runtime import kv_cache
from trol_runtime.errors import LimitError
from trol_runtime.kv_cache import STEP_TOKENS, KVCache

DECODER = SMALL_MODEL.decoder  # 6 layers, 4 key and value heads of 4 channels


def cache(max_tokens: int = 1000) -> KVCache:
    return KVCache(DECODER, max_tokens)


def test_it_takes_nothing_before_rows_are_known() -> None:
    empty = cache()
    assert (empty.capacity, empty.nbytes, empty.buffers) == (0, 0, [])


def test_allocate_makes_zeroed_keys_and_values_of_every_layer() -> None:
    made = cache()
    made.allocate(rows=3, tokens=10)
    assert len(made.buffers) == 2 * DECODER.layers
    for buffer in made.buffers:
        assert (buffer.shape, buffer.dtype) == ((3, DECODER.kv_heads, STEP_TOKENS, DECODER.head_dim), np.float32)
        assert buffer.flags.c_contiguous
        assert not buffer.any()
    assert made.nbytes == 3 * STEP_TOKENS * SMALL_MODEL.kv_bytes_per_token()


@pytest.mark.parametrize(
    ("tokens", "capacity"), [(1, 256), (255, 256), (256, 256), (257, 512), (769, 1000), (1000, 1000), (1001, 1001)]
)
def test_capacity_is_whole_steps_up_to_the_engines_limit(tokens: int, capacity: int) -> None:
    made = cache(max_tokens=1000)
    made.allocate(1, tokens)
    assert made.capacity == capacity


def test_reserve_keeps_what_is_there_and_zeroes_the_rest() -> None:
    grown = cache()
    grown.allocate(2, 256)
    for number, buffer in enumerate(grown.buffers, 1):
        buffer[...] = number
    grown.reserve(257)
    assert grown.capacity == 512
    for number, buffer in enumerate(grown.buffers, 1):
        assert (buffer[:, :, :256] == number).all()
        assert not buffer[:, :, 256:].any()


def test_reserve_within_the_capacity_moves_nothing() -> None:
    kept = cache()
    kept.allocate(1, 10)
    before = [buffer.ctypes.data for buffer in kept.buffers]
    kept.reserve(256)
    assert [buffer.ctypes.data for buffer in kept.buffers] == before


def test_writing_to_a_row_writes_to_the_cache() -> None:
    whole = cache()
    whole.allocate(3, 10)
    row = whole.row(1)
    assert row.capacity == whole.capacity
    for buffer in row.buffers:
        assert buffer.shape[0] == 1
        assert buffer.flags.c_contiguous
        buffer[...] = 7
    for buffer in whole.buffers:
        assert buffer.mean(axis=(1, 2, 3)).tolist() == [0, 7, 0]


def test_allocate_again_begins_with_zeros() -> None:
    again = cache()
    again.allocate(1, 10)
    again.buffers[0][...] = 1
    again.allocate(2, 300)
    assert (again.capacity, again.buffers[0].shape[0]) == (512, 2)
    assert not again.buffers[0].any()


def memory_for(monkeypatch: pytest.MonkeyPatch, buffers: int) -> None:
    """Let so many more buffers be made and no more."""
    made: list[Any] = []

    def zeros(*arguments: Any) -> np.ndarray:
        if len(made) == buffers:
            raise MemoryError
        made.append(None)
        return np.zeros(*arguments)

    monkeypatch.setattr(kv_cache, "np", SimpleNamespace(zeros=zeros, float32=np.float32, dtype=np.dtype))


@pytest.mark.parametrize("buffers", [0, 3])
def test_a_cache_that_does_not_fit_says_how_much_it_needs_and_is_empty(
    monkeypatch: pytest.MonkeyPatch, buffers: int
) -> None:
    large = cache()
    memory_for(monkeypatch, buffers)
    with pytest.raises(LimitError) as caught:
        large.allocate(2, 257)  # 2 rows * 512 tokens * 12 buffers * 4 heads * 4 channels * 4 bytes
    assert str(caught.value) == (
        "the KV cache of 2 row(s) of 512 tokens needs 768 KiB, which the system does not give; free memory, or send "
        "fewer rows or a shorter prompt"
    )
    assert (large.capacity, large.nbytes) == (0, 0)


@pytest.mark.parametrize("buffers", [0, 3])
def test_a_cache_that_cannot_grow_says_how_much_it_needs_and_is_empty(
    monkeypatch: pytest.MonkeyPatch, buffers: int
) -> None:
    """Not half of its buffers grown and half not."""
    full = cache()
    full.allocate(1, 256)
    memory_for(monkeypatch, buffers)
    with pytest.raises(LimitError, match=r"^the KV cache of 1 row\(s\) of 512 tokens needs 384 KiB, "):
        full.reserve(257)
    assert (full.capacity, full.nbytes) == (0, 0)
