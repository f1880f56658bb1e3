"""Two forms of plans, one cache: written in place, or filled with rows that a run gives."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.cuda import FakeRuntime
from small_engine import SMALL_MODEL
from trol_runtime import cuda_device
from trol_runtime.cache_forms import CacheUse, InPlace, NewRows, Prefix
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.device_cache import DeviceBuffer, DeviceCache
from trol_runtime.tensorrt_plan import Tensor

DECODER = SMALL_MODEL.decoder
LENGTH = 64
HEADS, WIDTH = DECODER.kv_heads, DECODER.head_dim


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: runtime)
    return runtime


@pytest.fixture
def device(cuda: FakeRuntime) -> CudaDevice:
    return CudaDevice()


def cache_of(device: CudaDevice, rows: int) -> DeviceCache:
    cache = DeviceCache(device, DECODER, LENGTH, np.float32, keeps_second_pass=True)
    cache.allocate(rows, LENGTH)
    return cache


def prefix_of(lengths: list[int], tokens: int) -> Prefix:
    """What a session asks for: each new token sees what is before it, and itself."""
    positions = np.array(lengths)[:, None] + np.arange(tokens)
    return Prefix(np.array(lengths), (np.arange(LENGTH) <= positions[..., None])[:, None])


def contents(cuda: FakeRuntime, device: CudaDevice, place: Tensor | DeviceBuffer) -> np.ndarray:
    """What lies there once everything is done, to be read and written."""
    device.synchronize()
    nbytes = 4 * int(np.prod(place.shape))
    return cuda.memory.view(place.address, nbytes).view(np.float32).reshape(place.shape)


def fill(cuda: FakeRuntime, device: CudaDevice, use: CacheUse) -> dict[str, np.ndarray]:
    """Have a run give every new row numbers of its own; returns them."""
    new = {name: place for name, place in use.tensors.items() if name.startswith("present")}
    given = {}
    for number, (name, place) in enumerate(new.items()):
        given[name] = number * 10_000 + np.arange(np.prod(place.shape), dtype=np.float32).reshape(place.shape)
        contents(cuda, device, place)[...] = given[name]
    use.finish()
    return given


def test_in_place_every_cache_is_input_and_output_at_one_address(device: CudaDevice) -> None:
    cache, prefix = cache_of(device, 2), prefix_of([3, 5], 1)
    use = InPlace().use("decode", cache, 1, prefix)
    assert use.inputs == prefix._asdict()
    for number, buffer in enumerate(cache.first_pass):
        name = f"{number // 2}.{('key', 'value')[number % 2]}"
        assert use.tensors[f"past_key_values.{name}"] == use.tensors[f"present.{name}"] == Tensor(*buffer)
    assert len(use.tensors) == 4 * DECODER.layers


@pytest.mark.parametrize(("role", "passes"), [("prefill", 1), ("extend", 2)])
def test_the_first_rows_of_a_prompt_fill_a_cache_from_its_beginning(
    cuda: FakeRuntime, device: CudaDevice, role: str, passes: int
) -> None:
    cache = cache_of(device, 1)
    use = NewRows(device).use(role, cache, 5)
    assert use.inputs == {}
    assert len(use.tensors) == passes * 2 * DECODER.layers
    given = list(fill(cuda, device, use).values())
    for buffer, rows in zip([*cache.first_pass, *cache.second_pass], given, strict=False):
        found = contents(cuda, device, buffer)
        np.testing.assert_array_equal(found[:, :, :5], rows)
        assert not found[:, :, 5:].any()


def test_a_prompt_of_one_row_of_a_batch_leaves_the_others_alone(cuda: FakeRuntime, device: CudaDevice) -> None:
    cache = cache_of(device, 3)
    given = list(fill(cuda, device, NewRows(device).use("prefill", cache.row(1), 4)).values())
    for buffer, rows in zip(cache.first_pass, given, strict=True):
        found = contents(cuda, device, buffer)
        np.testing.assert_array_equal(found[1:2, :, :4], rows)
        assert not found[[0, 2]].any()


def test_a_decoded_token_goes_where_its_row_ends(cuda: FakeRuntime, device: CudaDevice) -> None:
    cache, lengths = cache_of(device, 3), [7, 0, LENGTH - 1]
    use = NewRows(device).use("decode", cache, 1, prefix_of(lengths, 1))
    for number, buffer in enumerate(cache.first_pass):
        name = f"{number // 2}.{('key', 'value')[number % 2]}"
        assert use.tensors[f"past_key_values.{name}"] == Tensor(*buffer)
    given = list(fill(cuda, device, use).values())
    for buffer, rows in zip(cache.first_pass, given, strict=True):
        found = contents(cuda, device, buffer)
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(found[row, :, length], rows[row, :, 0])
        assert np.count_nonzero(found) <= rows.size


def test_new_tokens_attend_to_the_cache_up_to_where_they_go(device: CudaDevice) -> None:
    decoded = NewRows(device).use("decode", cache_of(device, 2), 1, prefix_of([3, 9], 1)).inputs
    assert decoded.keys() == {"attention_mask"}
    np.testing.assert_array_equal(decoded["attention_mask"][:, 0, 0], np.arange(LENGTH) < np.array([3, 9])[:, None])
    (extended,) = NewRows(device).use("extend", cache_of(device, 1), 4, prefix_of([6], 4)).inputs.values()
    assert extended.shape == (1, 1, 1, LENGTH)
    np.testing.assert_array_equal(extended[0, 0, 0], np.arange(LENGTH) < 6)


@pytest.mark.parametrize("tokens", [1, 3, 8, 50])
def test_what_a_run_gives_lies_apart_and_where_tensorrt_takes_addresses(device: CudaDevice, tokens: int) -> None:
    use = NewRows(device).use("extend", cache_of(device, 1), tokens)
    places = sorted(use.tensors.values())
    assert all(place.shape == (1, HEADS, tokens, WIDTH) for place in places)
    assert all(place.address % 256 == 0 for place in places)
    ends = [place.address + 4 * int(np.prod(place.shape)) for place in places]
    assert all(end <= after.address for end, after in zip(ends, places[1:], strict=False))


def test_decode_steps_have_their_rows_at_one_address_so_that_a_captured_graph_stays_good(device: CudaDevice) -> None:
    rows, cache = NewRows(device), cache_of(device, 2)
    rows.use("prefill", cache.row(0), 20)
    steps = [rows.use("decode", cache, 1, prefix_of([20 + step, 3], 1)).tensors for step in range(3)]
    assert steps[0] == steps[1] == steps[2]
