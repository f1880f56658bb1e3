"""KVCache: rounded up in steps, zeroed, grown, copied and rearranged without losing anything; of one pass or of two."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from small_engine import SMALL_MODEL
from trol_runtime import kv_cache
from trol_runtime.errors import LimitError
from trol_runtime.kv_cache import STEP_TOKENS, KVCache

DECODER = SMALL_MODEL.decoder  # 6 layers, 4 key and value heads of 4 channels


def cache(max_tokens: int = 1000, keeps_second_pass: bool = False) -> KVCache:
    return KVCache(DECODER, max_tokens, keeps_second_pass)


def numbered(rows: int, tokens: int = 10, keeps_second_pass: bool = False) -> KVCache:
    """A cache whose every buffer, row and position holds something of its own, as far as float32 goes."""
    made = cache(keeps_second_pass=keeps_second_pass)
    made.allocate(rows, tokens)
    for number, buffer in enumerate([*made.first_pass, *made.second_pass]):
        buffer[:, :, :tokens] = 1e4 * number + np.arange(1, rows + 1)[:, None, None, None] * 100
        buffer[:, :, :tokens] += np.arange(tokens)[:, None]
    return made


def contents(made: KVCache) -> list[np.ndarray]:
    return [buffer.copy() for buffer in [*made.first_pass, *made.second_pass]]


def test_it_takes_nothing_before_rows_are_known() -> None:
    empty = cache()
    assert (empty.capacity, empty.nbytes, empty.first_pass) == (0, 0, [])


def test_allocate_makes_zeroed_keys_and_values_of_every_layer() -> None:
    made = cache()
    made.allocate(rows=3, tokens=10)
    assert len(made.first_pass) == 2 * DECODER.layers
    for buffer in made.first_pass:
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
    for number, buffer in enumerate(grown.first_pass, 1):
        buffer[...] = number
    grown.reserve(257)
    assert grown.capacity == 512
    for number, buffer in enumerate(grown.first_pass, 1):
        assert (buffer[:, :, :256] == number).all()
        assert not buffer[:, :, 256:].any()


def test_reserve_within_the_capacity_moves_nothing() -> None:
    kept = cache()
    kept.allocate(1, 10)
    before = [buffer.ctypes.data for buffer in kept.first_pass]
    kept.reserve(256)
    assert [buffer.ctypes.data for buffer in kept.first_pass] == before


def test_writing_to_a_row_writes_to_the_cache() -> None:
    whole = cache()
    whole.allocate(3, 10)
    row = whole.row(1)
    assert row.capacity == whole.capacity
    for buffer in row.first_pass:
        assert buffer.shape[0] == 1
        assert buffer.flags.c_contiguous
        buffer[...] = 7
    for buffer in whole.first_pass:
        assert buffer.mean(axis=(1, 2, 3)).tolist() == [0, 7, 0]


def test_allocate_again_begins_with_zeros() -> None:
    again = cache()
    again.allocate(1, 10)
    again.first_pass[0][...] = 1
    again.allocate(2, 300)
    assert (again.capacity, again.first_pass[0].shape[0]) == (512, 2)
    assert not again.first_pass[0].any()


# --- the second pass


def test_a_cache_that_keeps_the_second_pass_takes_twice_the_memory_and_says_which_half_that_is() -> None:
    both = cache(keeps_second_pass=True)
    both.allocate(rows=3, tokens=10)
    half = 3 * STEP_TOKENS * SMALL_MODEL.kv_bytes_per_token()
    assert [len(buffers) for buffers in (both.first_pass, both.second_pass)] == [2 * DECODER.layers] * 2
    assert (both.nbytes, both.second_pass_nbytes) == (2 * half, half)
    both.drop_second_pass()
    assert (both.nbytes, both.second_pass_nbytes, both.second_pass) == (half, 0, [])


def test_both_passes_grow_together() -> None:
    both = numbered(2, keeps_second_pass=True)
    before = contents(both)
    both.reserve(257)
    assert {buffer.shape[2] for buffer in [*both.first_pass, *both.second_pass]} == {512}
    for old, new in zip(before, contents(both), strict=True):
        np.testing.assert_array_equal(new[:, :, :256], old)
        assert not new[:, :, 256:].any()


def test_a_second_pass_added_to_one_row_is_gone_with_the_view() -> None:
    """What a prompt in chunks needs while it is read, and for no longer."""
    whole = cache()
    whole.allocate(3, 10)
    row = whole.row(1)
    row.add_second_pass()
    assert [buffer.shape for buffer in row.second_pass] == [buffer.shape for buffer in row.first_pass]
    assert not any(buffer.any() for buffer in row.second_pass)
    assert (whole.second_pass, whole.row(1).second_pass, whole.second_pass_nbytes) == ([], [], 0)


def test_a_dropped_second_pass_does_not_come_back_with_the_next_rows() -> None:
    dropped = cache(keeps_second_pass=True)
    dropped.allocate(1, 10)
    dropped.drop_second_pass()
    dropped.allocate(1, 10)
    assert dropped.second_pass == []


# --- copies and rearrangements


@pytest.mark.parametrize("keeps_second_pass", [False, True])
def test_a_copy_holds_the_same_and_shares_nothing(keeps_second_pass: bool) -> None:
    original = numbered(2, keeps_second_pass=keeps_second_pass)
    before, copy = contents(original), original.copy(tokens=10)
    for old, new in zip(before, contents(copy), strict=True):
        np.testing.assert_array_equal(new, old)
    for buffer in [*copy.first_pass, *copy.second_pass]:
        assert buffer.flags.c_contiguous
        buffer[...] = -1
    for old, new in zip(before, contents(original), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_copy_takes_what_its_tokens_need_and_one_more() -> None:
    original = numbered(1, tokens=256)
    original.reserve(700)
    assert original.capacity == 768
    assert [original.copy(tokens).capacity for tokens in (10, 255, 256)] == [256, 256, 512]
    assert not original.copy(10).first_pass[0][:, :, 10:].any()


def test_a_copy_of_an_empty_cache_is_empty() -> None:
    assert cache(keeps_second_pass=True).copy(0).nbytes == 0


def test_repeat_makes_neighbours_of_every_row_and_leaves_the_second_pass_with_one_of_them() -> None:
    beams = numbered(2, keeps_second_pass=True)
    first, second = contents(beams)[:12], contents(beams)[12:]
    beams.repeat(3)
    for old, new in zip(first, beams.first_pass, strict=True):
        assert new.flags.c_contiguous
        np.testing.assert_array_equal(new, old[[0, 0, 0, 1, 1, 1]])
    for old, new in zip(second, beams.second_pass, strict=True):
        np.testing.assert_array_equal(new, old)
    beams.thin(3)
    for old, new in zip([*first, *second], contents(beams), strict=True):
        np.testing.assert_array_equal(new, old)


def test_move_takes_each_rows_tail_from_another_row_all_at_once() -> None:
    rows = numbered(4)
    before = contents(rows)
    sources, begin, end = [1, 0, 2, 1], [4, 4, 4, 6], [9, 9, 9, 10]
    rows.move(sources, begin, end)
    for old, new in zip(before, rows.first_pass, strict=True):
        for row, source in enumerate(sources):
            tail = slice(begin[row], end[row])
            np.testing.assert_array_equal(new[row, :, tail], old[source, :, tail])
            np.testing.assert_array_equal(new[row, :, : begin[row]], old[row, :, : begin[row]])
            np.testing.assert_array_equal(new[row, :, end[row] :], old[row, :, end[row] :])


# --- without memory


def memory_for(monkeypatch: pytest.MonkeyPatch, buffers: int) -> None:
    """Let so many more buffers be made and no more."""
    made: list[Any] = []

    def counted(make: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def call(*arguments: Any, **options: Any) -> np.ndarray:
            if len(made) == buffers:
                raise MemoryError
            made.append(None)
            return make(*arguments, **options)

        return call

    zeros, repeat = counted(np.zeros), counted(np.repeat)
    names = SimpleNamespace(zeros=zeros, repeat=repeat, float32=np.float32, dtype=np.dtype)
    monkeypatch.setattr(kv_cache, "np", names)


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


def test_a_cache_whose_growth_is_interrupted_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    full = numbered(1)
    made: list[None] = []

    def zeros(*arguments: Any) -> np.ndarray:
        made.append(None)
        if len(made) == 4:
            raise KeyboardInterrupt
        return np.zeros(*arguments)

    monkeypatch.setattr(kv_cache, "np", SimpleNamespace(zeros=zeros, float32=np.float32, dtype=np.dtype))
    with pytest.raises(KeyboardInterrupt):
        full.reserve(257)
    assert full.nbytes == 0


def test_two_passes_that_do_not_fit_count_both(monkeypatch: pytest.MonkeyPatch) -> None:
    large = cache(keeps_second_pass=True)
    memory_for(monkeypatch, 15)  # the first pass and three buffers of the second
    with pytest.raises(LimitError, match=r"^the KV cache of 2 row\(s\) of 512 tokens needs 1\.50 MiB, "):
        large.allocate(2, 257)
    assert large.nbytes == 0


def test_a_copy_that_does_not_fit_leaves_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    original = numbered(1, keeps_second_pass=True)
    before = contents(original)
    memory_for(monkeypatch, 3)
    with pytest.raises(LimitError, match=r"^the KV cache of 1 row\(s\) of 256 tokens needs 384 KiB, "):
        original.copy(10)
    for old, new in zip(before, contents(original), strict=True):
        np.testing.assert_array_equal(new, old)


def test_rows_that_cannot_be_repeated_leave_an_empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    beams = numbered(2)
    memory_for(monkeypatch, 3)
    with pytest.raises(LimitError, match=r"^the KV cache of 10 row\(s\) of 256 tokens needs "):
        beams.repeat(5)
    assert beams.nbytes == 0
