"""A dozen bugs put into the GPU backend one by one: the fake GPU, or the comparison with the CPU, catches each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from conftest import EngineOf
from small_prompts import FP32_BUDGET, picture

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.engine import gpu_model, put_on_fake_gpu
from fake_gpu.memory import Fault
from trol_runtime import TroL
from trol_runtime.bundle import Bundle
from trol_runtime.cuda_device import Box, CudaDevice, DeviceMemory
from trol_runtime.decode_graph import DecodeGraph
from trol_runtime.device_arena import DeviceArena
from trol_runtime.device_cache import DeviceBuffer, DeviceCache
from trol_runtime.errors import TrolError
from trol_runtime.gpu_backend import GpuBackend
from trol_runtime.tensorrt_plan import Tensor, TensorRTPlan

Patch = pytest.MonkeyPatch
PICTURE = picture(40, 40)
# What a bug may show as: the fake objects, the runtime does, or numbers that are not the CPU's.
CAUGHT = (Fault, TrolError, AssertionError)


def no_wait_before_logits_are_read(patch: Patch) -> None:
    patch.setattr(CudaDevice, "synchronize", lambda self: None)


def keys_and_values_swapped_in_decode(patch: Patch) -> None:
    """In all roles alike it would be no bug: both have one shape."""
    decode = GpuBackend.decode

    def swapped(self: GpuBackend, cache: DeviceCache, *inputs: Any) -> Any:
        buffers = cache.first_pass
        cache.first_pass = [buffers[place ^ 1] for place in range(len(buffers))]
        logits = decode(self, cache, *inputs)
        cache.first_pass = buffers
        return logits

    patch.setattr(GpuBackend, "decode", swapped)


def shape_of_the_run_before(patch: Patch) -> None:
    bind = TensorRTPlan.bind

    def stale(self: TensorRTPlan, tensors: Mapping[str, Tensor]) -> None:
        if not hasattr(self, "_bound_once"):
            self._bound_once = True  # type: ignore[attr-defined]
            return bind(self, tensors)
        for name, tensor in tensors.items():
            self._set_address(name, tensor.address)
        return None

    patch.setattr(TensorRTPlan, "bind", stale)


def tokens_written_one_place_too_far(patch: Patch) -> None:
    run = GpuBackend._run

    def off(self: GpuBackend, role: str, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        if role == "decode":
            inputs = {**inputs, "write_index": inputs["write_index"] + 1}
        return run(self, role, inputs, *rest, **more)

    patch.setattr(GpuBackend, "_run", off)


def output_beside_the_cache_that_it_updates(patch: Patch) -> None:
    in_place = GpuBackend._in_place

    def apart(self: GpuBackend, names: Any, buffers: list[DeviceBuffer]) -> Mapping[str, Tensor]:
        tensors = dict(in_place(self, names, buffers))
        other = self._room("decode", "elsewhere", 1 << 20)
        return tensors | {names[0][1]: Tensor(other.address, buffers[0].shape)}

    patch.setattr(GpuBackend, "_in_place", apart)


def caches_begin_uninitialised(patch: Patch) -> None:
    patch.setattr(CudaDevice, "fill_zero", lambda *_: None)


def weights_freed_while_plans_read_them(patch: Patch) -> None:
    share = TensorRTPlan.share_weights

    def forgotten(self: TensorRTPlan, arena: DeviceArena) -> None:
        share(self, arena)
        self._arena = None  # type: ignore[assignment]

    patch.setattr(TensorRTPlan, "share_weights", forgotten)


def a_graph_of_other_addresses_launched(patch: Patch) -> None:
    def run(self: DecodeGraph, plan: Any, tensors: Mapping[str, Tensor]) -> None:
        if self._launch is None:
            plan.bind(tensors)
            plan.enqueue()
            self._launch = self._device.captured(plan.enqueue)
        else:
            self._launch()

    patch.setattr(DecodeGraph, "run", run)


def a_plan_without_memory_for_activations(patch: Patch) -> None:
    patch.setattr(TensorRTPlan, "lend_activations", lambda self, memory: None)


def beams_moved_one_after_the_other(patch: Patch) -> None:
    """Not all at once: a row that was overwritten is read as if it were still what it was."""

    def move(self: DeviceCache, sources: Any, begin: Any, end: Any) -> None:
        first, rows = self._whole()
        for row, source in enumerate(sources):
            if row != source and end[row] > begin[row]:
                self._device.copy_box(
                    self._positions(first, rows, row, begin[row], end[row]),
                    self._positions(first, rows, source, begin[row], end[row]),
                )

    patch.setattr(DeviceCache, "move", move)


def weights_read_from_a_tensor_too_early(patch: Patch) -> None:
    address = DeviceArena.address
    patch.setattr(DeviceArena, "address", lambda self, name: address(self, name) - 256)


def every_second_head_of_a_beam_moved(patch: Patch) -> None:
    positions = DeviceCache._positions

    def wide(self: DeviceCache, block: DeviceMemory, rows: int, row: int, begin: int, end: int) -> Box:
        box = positions(self, block, rows, row, begin, end)
        return box._replace(pitch=box.pitch * 2) if row else box

    patch.setattr(DeviceCache, "_positions", wide)


BUGS: tuple[Callable[[Patch], None], ...] = (
    no_wait_before_logits_are_read,
    keys_and_values_swapped_in_decode,
    shape_of_the_run_before,
    tokens_written_one_place_too_far,
    output_beside_the_cache_that_it_updates,
    caches_begin_uninitialised,
    weights_freed_while_plans_read_them,
    a_graph_of_other_addresses_launched,
    a_plan_without_memory_for_activations,
    beams_moved_one_after_the_other,
    weights_read_from_a_tensor_too_early,
    every_second_head_of_a_beam_moved,
)


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where compiled kernels are kept."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bundle(micro_engine: EngineOf) -> Bundle:
    return Bundle.open(micro_engine("internlm2"))


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> list[np.ndarray]:
    return conversation(TroL(bundle))


def conversation(model: TroL) -> list[np.ndarray]:
    """What a user might do, as arrays: a picture, decoding, another prompt, beams that change places, two sessions."""
    embeds = model.session.encode(model.preprocess([PICTURE]))
    tokens = embeds.shape[1]
    ids = np.array([[1, *[model.config.image_token_id] * tokens, 5, 6, 7]])
    found = [embeds, model.session.prefill(ids, embeds)]
    found += [model.session.decode(np.array([token])) for token in (8, 9, 10)]
    found.append(model.session.prefill(np.array([[1, 44, 3, 9]])))
    model.session.repeat(3)
    found.append(model.session.decode(np.array([5, 6, 7])))
    found.append(model.session.decode(np.array([15, 16, 17])))
    model.session.reorder(np.array([2, 0, 1]))
    found.append(model.session.decode(np.array([25, 26, 27])))
    other = model.new_session()
    found.append(other.prefill(np.array([[1, 80, 3]])))
    turns = [(model.session, 3), (other, 1)] * 2
    found += [session.decode(np.full(rows, 7)) for session, rows in turns]
    return found


def test_without_a_bug_it_is_the_cpus(bundle: Bundle, expected: list[np.ndarray], monkeypatch: Patch) -> None:
    assert_same(conversation(gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch))), expected)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__.replace("_", " "))
def test_a_bug_is_caught(
    bundle: Bundle, expected: list[np.ndarray], monkeypatch: Patch, bug: Callable[[Patch], None]
) -> None:
    bug(monkeypatch)
    with pytest.raises(CAUGHT):
        assert_same(conversation(gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch))), expected)


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= FP32_BUDGET * np.abs(other).max()
