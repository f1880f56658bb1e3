"""Bugs put into the GPU backend one by one: the fake GPU, or the comparison with the CPU, catches each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import EngineOf
from small_prompts import FP32_BUDGET, picture

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.engine import gpu_model, put_on_fake_gpu
from fake_gpu.memory import Fault
from trol_runtime import TroL, cache_forms
from trol_runtime.bundle import Bundle
from trol_runtime.cache_forms import CacheForm, CacheUse, InPlace, NewRows, Prefix, _Planes
from trol_runtime.cuda_device import Box, CudaDevice
from trol_runtime.decode_graph import DecodeGraph
from trol_runtime.device_arena import DeviceArena
from trol_runtime.device_cache import DeviceBuffer, DeviceCache
from trol_runtime.errors import TrolError
from trol_runtime.gpu_backend import GpuBackend
from trol_runtime.manifest import Opset
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
    def off(role: str, cache: DeviceCache, use: CacheUse) -> CacheUse:
        written = {"write_index": use.inputs["write_index"] + 1} if role == "decode" else {}
        return use._replace(inputs={**use.inputs, **written})

    change_use(patch, InPlace, off)


def output_beside_the_cache_that_it_updates(patch: Patch) -> None:
    def apart(role: str, cache: DeviceCache, use: CacheUse) -> CacheUse:
        shape = use.tensors["present.0.key"].shape
        elsewhere = Tensor(cache._device.allocate(1 << 20, "a test").address, shape)
        return use._replace(tensors={**use.tensors, "present.0.key": elsewhere})

    change_use(patch, InPlace, apart)


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
        for row, source in enumerate(sources):
            if row != source and end[row] > begin[row]:
                there, here = (self.positions(self.first_pass, one, begin[row], end[row]) for one in (row, source))
                self._device.copy_box(there, here)

    patch.setattr(DeviceCache, "move", move)


def weights_read_from_a_tensor_too_early(patch: Patch) -> None:
    address = DeviceArena.address
    patch.setattr(DeviceArena, "address", lambda self, name: address(self, name) - 256)


def every_second_head_of_a_beam_moved(patch: Patch) -> None:
    positions = DeviceCache.positions

    def wide(self: DeviceCache, buffers: list[DeviceBuffer], row: int, begin: int, end: int) -> Box:
        box = positions(self, buffers, row, begin, end)
        return box._replace(pitch=box.pitch * 2) if row else box

    patch.setattr(DeviceCache, "positions", wide)


def change_use(patch: Patch, form: type[CacheForm], change: Callable[[str, DeviceCache, CacheUse], CacheUse]) -> None:
    """Have something else done with caches than what a form of plans wants."""
    use = form.use

    def changed(self: Any, role: str, cache: DeviceCache, tokens: int, prefix: Prefix | None = None) -> CacheUse:
        return change(role, cache, use(self, role, cache, tokens, prefix))

    patch.setattr(form, "use", changed)


def new_rows_left_where_they_are(patch: Patch) -> None:
    def without_copies(role: str, cache: DeviceCache, use: CacheUse) -> CacheUse:
        return use._replace(finish=lambda: None)

    change_use(patch, NewRows, without_copies)


def new_rows_put_one_place_too_far(patch: Patch) -> None:
    positions = DeviceCache.positions

    def off(self: DeviceCache, buffers: list[DeviceBuffer], row: int, begin: int, end: int) -> Box:
        return positions(self, buffers, row, begin + 1, end + 1)

    patch.setattr(DeviceCache, "positions", off)


def new_row_of_the_first_beam_put_into_all(patch: Patch) -> None:
    row_of = _Planes.row
    patch.setattr(_Planes, "row", lambda self, row, planes: row_of(self, 0, planes))


def new_keys_taken_for_values(patch: Patch) -> None:
    tensor = _Planes.tensor
    patch.setattr(_Planes, "tensor", lambda self, number: tensor(self, number ^ 1))


def planes_of_new_rows_laid_out_without_a_gap(patch: Patch) -> None:
    """And read with one, where their sizes are no multiples of 256 bytes."""

    def close_together(self: _Planes, number: int) -> Tensor:
        rows, heads, _, _ = self.shape
        return Tensor(self.begin + number * rows * heads * self.line, self.shape)

    patch.setattr(_Planes, "tensor", close_together)


def new_rows_copied_before_the_run(patch: Patch) -> None:
    def too_early(role: str, cache: DeviceCache, use: CacheUse) -> CacheUse:
        use.finish()
        return use._replace(finish=lambda: None)

    change_use(patch, NewRows, too_early)


def new_tokens_taken_for_tokens_of_the_cache(patch: Patch) -> None:
    """The mask of modern plans, which has the new token's place in the cache, where nothing lies yet."""
    patch.setattr(cache_forms, "_mask_of", lambda prefix: prefix.attention_mask[:, :, :1])


def mask_of_the_step_before(patch: Patch) -> None:
    def stale(role: str, cache: DeviceCache, use: CacheUse) -> CacheUse:
        if role != "decode":
            return use
        mask = use.inputs["attention_mask"]
        return use._replace(inputs={"attention_mask": mask & np.roll(mask, -1, axis=-1)})

    change_use(patch, NewRows, stale)


def second_pass_put_where_the_first_is(patch: Patch) -> None:
    passes = cache_forms._passes

    def mixed(role: str, cache: DeviceCache) -> list[Any]:
        first, *second = passes(role, cache)
        return [first, *(one._replace(buffers=first.buffers) for one in second)]

    patch.setattr(cache_forms, "_passes", mixed)


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
# Of plans that give new keys and values as rows of their own.
LEGACY_BUGS: tuple[Callable[[Patch], None], ...] = (
    new_rows_left_where_they_are,
    new_rows_put_one_place_too_far,
    new_row_of_the_first_beam_put_into_all,
    new_keys_taken_for_values,
    planes_of_new_rows_laid_out_without_a_gap,
    new_rows_copied_before_the_run,
    new_tokens_taken_for_tokens_of_the_cache,
    mask_of_the_step_before,
    second_pass_put_where_the_first_is,
)
FORM_AND_BUG: tuple[tuple[Opset, Callable[[Patch], None]], ...] = (
    *(("modern", bug) for bug in BUGS),
    *(("legacy", bug) for bug in LEGACY_BUGS),
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
    """What a user might do, as arrays: a picture, decoding, another prompt, beams that change places, two sessions, and
    one that goes on behind its prefix."""
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
    chat = model.new_session(keep_prefix=True)
    found += [chat.prefill(np.array([[1, 5, 9]])), chat.decode(np.array([4])), chat.extend(np.array([[3, 8]]))]
    return found


@pytest.mark.parametrize("opset", ["modern", "legacy"])
def test_without_a_bug_it_is_the_cpus(
    bundle: Bundle, expected: list[np.ndarray], monkeypatch: Patch, opset: Opset
) -> None:
    assert_same(conversation(gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch, opset))), expected)


@pytest.mark.parametrize(
    ("opset", "bug"), FORM_AND_BUG, ids=[bug.__name__.replace("_", " ") for _, bug in FORM_AND_BUG]
)
def test_a_bug_is_caught(
    bundle: Bundle, expected: list[np.ndarray], monkeypatch: Patch, opset: Opset, bug: Callable[[Patch], None]
) -> None:
    bug(monkeypatch)
    with pytest.raises(CAUGHT):
        assert_same(conversation(gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch, opset))), expected)


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= FP32_BUDGET * np.abs(other).max()


def test_the_page_names_every_bug() -> None:
    page = (Path(__file__).parents[2] / "docs/without-a-gpu.md").read_text(encoding="utf-8")
    section = page.split("## Bugs that it must catch", 1)[1].split("\n## ", 1)[0]
    listed = [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]
    assert listed == [bug.__name__.replace("_", " ") for _, bug in FORM_AND_BUG]
