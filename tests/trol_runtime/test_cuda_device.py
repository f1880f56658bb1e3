"""A device takes from the driver what is in use and no more, and from the host what is still there to be read."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from cuda.bindings import runtime as real

from fake_gpu.cuda import FakeRuntime
from fake_gpu.memory import Fault
from trol_runtime import cuda_device
from trol_runtime.cuda_device import CudaDevice, DeviceMemory, GrowingMemory
from trol_runtime.errors import LimitError, TrolError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: runtime)
    return runtime


@pytest.fixture
def device(cuda: FakeRuntime) -> CudaDevice:
    return CudaDevice()


def filled(device: CudaDevice, array: np.ndarray) -> DeviceMemory:
    """Memory into which the array is being copied."""
    memory = device.allocate(array.nbytes, "a test")
    device.upload(memory.address, array)
    return memory


def downloaded(device: CudaDevice, memory: DeviceMemory) -> list[float]:
    array = np.empty(memory.nbytes // 4, np.float32)
    device.download(array, memory.address)
    return array.tolist()


# Arrays of the host


def test_an_array_that_nobody_else_keeps_is_kept_until_it_was_copied(device: CudaDevice) -> None:
    memory = filled(device, np.arange(4, dtype=np.float32))
    assert downloaded(device, memory) == [0, 1, 2, 3]


def test_arrays_are_let_go_once_the_stream_was_waited_for(device: CudaDevice) -> None:
    filled(device, np.zeros(4, np.float32))
    assert len(device._uploading) == 1
    device.synchronize()
    assert not device._uploading


def test_the_fake_finds_an_array_that_was_let_go_too_early(device: CudaDevice) -> None:
    filled(device, np.zeros(4, np.float32))
    device._uploading.clear()
    with pytest.raises(Fault, match="an array of the host was let go before its copy was done"):
        device.synchronize()


def test_the_fake_reads_an_array_as_late_as_a_gpu_may(device: CudaDevice) -> None:
    array = np.zeros(4, np.float32)
    memory = filled(device, array)
    array[:] = 9
    assert downloaded(device, memory) == [9, 9, 9, 9]


def test_the_fake_reads_nothing_that_is_no_array(device: CudaDevice, cuda: FakeRuntime) -> None:
    memory = device.allocate(16, "a test")
    kind = real.cudaMemcpyKind.cudaMemcpyHostToDevice
    with pytest.raises(Fault, match="0x100 is no array of the host"):
        cuda.cudaMemcpyAsync(memory.address, 0x100, 16, kind, device.stream)


def test_what_is_downloaded_is_there_when_the_call_returns(device: CudaDevice) -> None:
    memory = device.allocate(8, "a test")
    device.fill_zero(memory.address, 8)
    assert downloaded(device, memory) == [0, 0]


# The stream


def test_a_stream_that_waits_for_the_legacy_stream_is_none_of_ours(cuda: FakeRuntime) -> None:
    with pytest.raises(AssertionError, match="a stream that waits for the legacy stream"):
        cuda.cudaStreamCreateWithFlags(real.cudaStreamDefault)


# Memory


def test_freed_memory_is_taken_again_for_what_has_its_size(device: CudaDevice, cuda: FakeRuntime) -> None:
    address = device.allocate(1000, "a test").address
    assert device.allocate(1000, "a test").address == address
    assert cuda.memory.in_use == 1000


def test_memory_that_is_kept_goes_back_before_more_is_taken(device: CudaDevice, cuda: FakeRuntime) -> None:
    lasting = device.allocate(100, "a test")
    for nbytes in (1000, 2000, 3000, 500):
        device.allocate(nbytes, "a test")  # and lets it go
        assert cuda.memory.in_use == 100 + nbytes
    lasting.free()
    assert device.allocate(500, "a test").nbytes == cuda.memory.in_use - 100  # from what is kept: nothing is given back


def test_memory_that_the_stream_still_uses_goes_back_when_it_is_done_with_it(
    device: CudaDevice, cuda: FakeRuntime
) -> None:
    source, target = filled(device, np.ones(64, np.float32)), device.allocate(256, "a test")
    device.copy(target.address, source.address, 256)
    source.free()
    device.allocate(512, "a test")
    assert downloaded(device, target) == [1] * 64


def test_where_the_driver_has_no_more_the_numbers_are_told(device: CudaDevice, cuda: FakeRuntime) -> None:
    weights = device.allocate(3 << 20, "weights")
    cuda.memory.total = weights.nbytes + (1 << 20)
    with pytest.raises(LimitError) as refused:
        device.allocate(2 << 20, "KV cache")
    assert str(refused.value) == (
        "the GPU has no 2.00 MiB for KV cache: it holds 3.00 MiB of weights, 1.00 MiB of 4.00 MiB are free; close what "
        "else uses it, or export with a smaller --max-seq or --max-batch"
    )


def test_growing_memory_stays_where_it_is_while_it_is_large_enough(device: CudaDevice) -> None:
    memory = GrowingMemory(device, "a test")
    address = memory.address(1000)
    assert [memory.address(nbytes) for nbytes in (1, 1024, 512)] == [address] * 3


def test_growing_memory_takes_twice_what_was_needed_at_most(device: CudaDevice, cuda: FakeRuntime) -> None:
    memory = GrowingMemory(device, "a test")
    for needed in range(1, 3000, 7):
        cuda.memory.view(memory.address(needed), needed)
        assert needed <= cuda.memory.in_use < 2 * needed
        assert cuda.memory.in_use == device._in_use["a test"]


def test_a_device_that_goes_gives_everything_back(cuda: FakeRuntime) -> None:
    device = CudaDevice()
    memory = filled(device, np.ones(64, np.float32))
    launch = device.captured(partial(device.fill_zero, memory.address, 256))
    del memory, launch, device
    gc.collect()
    assert (cuda.memory.in_use, cuda._streams, cuda._graphs, cuda._executables) == (0, {}, {}, {})


def test_memory_that_goes_while_others_is_given_back_is_kept(
    device: CudaDevice, cuda: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage collection may come at any time, that of a session in a cycle in the middle of it."""
    late = [device.allocate(nbytes, "a test") for nbytes in (100, 200)]
    device.allocate(100, "a test").free()
    free = FakeRuntime.cudaFree

    def collecting(self: FakeRuntime, devPtr: int) -> Any:
        late.clear()
        return free(self, devPtr)

    collecting.__doc__ = free.__doc__
    monkeypatch.setattr(FakeRuntime, "cudaFree", collecting)
    device.allocate(300, "a test").free()
    assert sorted(device._free) == [100, 200, 300]
    addresses = {device.allocate(nbytes, "a test").address for nbytes in (100, 200, 300)}
    assert len(addresses) == 3


# Graphs


def test_what_cannot_be_captured_leaves_no_graph_behind(device: CudaDevice, cuda: FakeRuntime) -> None:
    memory = device.allocate(16, "a test")

    def half() -> None:
        device.fill_zero(memory.address, 16)
        raise TrolError("no run today")

    with pytest.raises(TrolError, match="no run today"):
        device.captured(half)
    assert not cuda._graphs
    device.synchronize()  # no capture goes on


# Threads


def test_a_thread_whose_current_device_is_another_works_on_this_one_and_keeps_its_own(cuda: FakeRuntime) -> None:
    cuda.cudaSetDevice(1)
    device = CudaDevice()
    memory = device.allocate(256, "a test")

    def elsewhere() -> tuple[list[float], int]:
        device.fill_zero(memory.address, 256)
        return downloaded(device, memory), cuda.cudaGetDevice()[1]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(elsewhere).result() == ([0] * 64, 0)
    assert cuda.cudaGetDevice()[1] == 1


# Forks


def test_in_a_fork_nothing_is_asked_of_the_gpu(
    device: CudaDevice, cuda: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = device.allocate(16, "a test")
    parent = os.getpid()
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: parent + 1)
        for call in (device.synchronize, device.memory, lambda: device.allocate(16, "a test"), memory.free):
            with pytest.raises(TrolError) as refused:
                call()
            assert str(refused.value).startswith(
                f"the engine was loaded in process {parent} and is used in its fork {parent + 1}; load it after forking"
            )


def test_in_a_fork_the_memory_of_the_parent_is_left_alone(
    device: CudaDevice, cuda: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an error is said there, which Python would print and pytest makes a failure of."""
    memory = device.allocate(16, "a test")
    address = memory.address
    launch = device.captured(lambda: device.fill_zero(address, 16))
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: -1)
        del memory, launch
    assert device._in_use["a test"] == 16
