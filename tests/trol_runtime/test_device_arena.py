"""The weights of an engine file, byte for byte and once, on a device that may read them late."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.cuda import FakeRuntime
from small_engine import SMALL_WEIGHTS, write_small_engine
from trol_runtime import cuda_device, device_arena
from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.device_arena import DeviceArena
from trol_runtime.errors import EngineFileError

WINDOW = 4096


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: runtime)
    return runtime


@pytest.fixture
def device(cuda: FakeRuntime) -> CudaDevice:
    return CudaDevice()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """An engine of many windows, as those of real size are."""
    bundle = Bundle.open(write_small_engine(tmp_path / "engine.plan"))
    monkeypatch.setattr(device_arena, "ARENA_BLOCK_BYTES", WINDOW)
    arena = bundle.entries[ARENA_ENTRY]
    data = bundle.path.read_bytes()[arena.offset : arena.offset + arena.size]
    assert len(data) > 10 * WINDOW
    return with_hashes(
        bundle, (hashlib.sha256(data[begin : begin + WINDOW]).hexdigest() for begin in range(0, len(data), WINDOW))
    )


def with_hashes(bundle: Bundle, hashes: Iterable[str]) -> Bundle:
    sha256 = replace(bundle.manifest.sha256, arena_blocks=tuple(hashes))
    return replace(bundle, manifest=replace(bundle.manifest, sha256=sha256))


def test_every_tensor_lies_on_the_device_as_it_is_in_the_file(
    bundle: Bundle, device: CudaDevice, cuda: FakeRuntime
) -> None:
    arena = DeviceArena(bundle, device)
    for name, expected in SMALL_WEIGHTS.items():
        assert name in arena
        found = cuda.memory.view(arena.address(name), expected.nbytes).view(expected.dtype).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected)


def test_tensors_begin_where_tensorrt_takes_addresses(bundle: Bundle, device: CudaDevice) -> None:
    arena = DeviceArena(bundle, device)
    assert [arena.address(name) % 256 for name in SMALL_WEIGHTS] == [0] * len(SMALL_WEIGHTS)


def test_when_it_is_there_the_file_may_be_read_into_other_memory(bundle: Bundle, device: CudaDevice) -> None:
    DeviceArena(bundle, device)
    assert not device._uploading


def test_a_damaged_window_in_the_middle_is_found_and_named(bundle: Bundle, device: CudaDevice) -> None:
    hashes = list(bundle.manifest.sha256.arena_blocks)
    hashes[3] = "0" * 64
    with pytest.raises(EngineFileError, match=r"block 3 of weights\.safetensors is damaged; copy or export the engine"):
        DeviceArena(with_hashes(bundle, hashes), device)
