"""A cache on the device does to its rows what the CPU's does, at addresses that TensorRT takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.cuda import FakeRuntime
from small_engine import SMALL_MODEL
from trol_runtime import cuda_device
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.device_cache import DeviceCache, aligned_length
from trol_runtime.errors import LimitError
from trol_runtime.kv_cache import KVCache

DECODER = SMALL_MODEL.decoder
LENGTH, ROWS = 64, 3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: runtime)
    return runtime


@pytest.fixture
def device(cuda: FakeRuntime) -> CudaDevice:
    return CudaDevice()


def contents(cuda: FakeRuntime, device: CudaDevice, cache: DeviceCache) -> list[np.ndarray]:
    """Keys and values of all layers, to be read and written."""
    device.synchronize()
    itemsize = cache._dtype.itemsize
    return [
        cuda.memory.view(one.address, int(np.prod(one.shape)) * itemsize).view(cache._dtype).reshape(one.shape)
        for one in cache.first_pass
    ]


def numbered(cuda: FakeRuntime, device: CudaDevice, dtype: type, rows: int = ROWS) -> DeviceCache:
    """One in which every layer, row, head and position has a number of its own, as far as the type has so many."""
    cache = DeviceCache(device, DECODER, LENGTH, dtype)
    cache.allocate(rows, LENGTH)
    for number, array in enumerate(contents(cuda, device, cache)):
        array[...] = (np.arange(array.size).reshape(array.shape) + number) % 2039
    return cache


def moved(cache: DeviceCache | KVCache) -> None:
    cache.move([2, 0, 2], [5, 9, 0], [20, 9, 50])


def repeated(cache: DeviceCache | KVCache) -> None:
    cache.repeat(2)


def repeated_and_thinned(cache: DeviceCache | KVCache) -> None:
    cache.repeat(2)
    cache.thin(3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("change", [moved, repeated, repeated_and_thinned])
def test_rows_are_moved_and_repeated_as_on_the_cpu(
    cuda: FakeRuntime, device: CudaDevice, change: Callable[[DeviceCache | KVCache], None], dtype: type
) -> None:
    cache = numbered(cuda, device, dtype)
    same = KVCache(DECODER, LENGTH, False)
    same.allocate(ROWS, LENGTH)
    for mine, theirs in zip(same.first_pass, contents(cuda, device, cache), strict=True):
        mine[...] = theirs
    change(cache)
    change(same)
    for found, expected in zip(contents(cuda, device, cache), same.first_pass, strict=True):
        np.testing.assert_array_equal(found, expected[:, :, :LENGTH])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_copy_is_another_cache_with_the_same_rows(cuda: FakeRuntime, device: CudaDevice, dtype: type) -> None:
    cache = numbered(cuda, device, dtype)
    copy = cache.copy(LENGTH)
    for one, other in zip(contents(cuda, device, cache), contents(cuda, device, copy), strict=True):
        np.testing.assert_array_equal(one, other)
        other[...] = 0
        assert one.any()


def test_moves_of_a_token_more_each_take_memory_seldom(
    cuda: FakeRuntime, device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beams make them, whose rows differ from where their prompt ends."""
    cache = numbered(cuda, device, np.float32)
    sizes, malloc = [], FakeRuntime.cudaMalloc

    def counted(self: FakeRuntime, size: int) -> object:
        sizes.append(size)
        return malloc(self, size)

    monkeypatch.setattr(FakeRuntime, "cudaMalloc", counted)
    for end in range(1, LENGTH + 1):
        cache.move([1, 0, 2], [0, 0, 0], [end, end, end])
    assert len(sizes) <= 2 * (1 + LENGTH.bit_length())  # two rows aside for every power of two


def test_where_the_second_pass_finds_no_memory_the_cache_is_empty(cuda: FakeRuntime, device: CudaDevice) -> None:
    cache = DeviceCache(device, DECODER, LENGTH, np.float32, keeps_second_pass=True)
    cache.allocate(1, LENGTH)
    cuda.memory.total = 3 * cache.nbytes // 2
    with pytest.raises(LimitError, match="for KV cache"):
        cache.allocate(2, LENGTH)
    assert (cache.nbytes, cache.capacity) == (0, 0)


@pytest.mark.parametrize(
    ("tokens", "token_bytes", "length"),
    [(1000, 192, 1000), (1001, 192, 1004), (637, 32, 640), (4095, 2048, 4095), (1, 64, 4), (5, 3, 256)],
)
def test_a_length_is_rounded_up_until_rows_begin_where_tensorrt_takes_addresses(
    tokens: int, token_bytes: int, length: int
) -> None:
    assert aligned_length(tokens, token_bytes) == length
    assert length * token_bytes % 256 == 0
    assert not any(shorter * token_bytes % 256 == 0 for shorter in range(tokens, length))
