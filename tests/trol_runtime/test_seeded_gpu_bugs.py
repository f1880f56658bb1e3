"""Bugs put into the GPU backend one by one: the fake GPU, or the comparison with the CPU, catches each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import EngineOf, Precision
from small_conversation import conversation

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.engine import LEGACY, RTX, TENSORRT, PlanKind, gpu_model, put_on_fake_gpu
from fake_gpu.memory import Fault
from trol_export.parity import BUDGETS
from trol_runtime import TroL, cache_forms, device_arena
from trol_runtime.bundle import Bundle
from trol_runtime.cache_forms import CacheForm, CacheUse, InPlace, NewRows, Prefix, _Planes
from trol_runtime.cuda_device import Box, CudaDevice
from trol_runtime.decode_graph import DecodeGraph
from trol_runtime.device_arena import DeviceArena
from trol_runtime.device_cache import DeviceBuffer, DeviceCache
from trol_runtime.errors import TrolError
from trol_runtime.gpu_backend import GpuBackend
from trol_runtime.tensorrt_plan import Tensor, TensorRTPlan

Patch = pytest.MonkeyPatch
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


def weights_overwritten_before_they_are_copied(patch: Patch) -> None:
    """By the next ones of the file, which are read into the same buffer; those of a larger engine are so many."""
    windows, load = device_arena._windows, DeviceArena.__init__

    def halves(bundle: Bundle) -> Iterator[np.ndarray]:
        for window in windows(bundle):
            buffer = np.empty(-(-window.size // 2), np.uint8)
            for half in (window[: buffer.size], window[buffer.size :]):
                buffer[: half.size] = half
                yield buffer[: half.size]

    def hasty(self: DeviceArena, bundle: Bundle, device: CudaDevice) -> None:
        with Patch.context() as loading:
            loading.setattr(CudaDevice, "synchronize", lambda self: None)
            load(self, bundle, device)
        device.synchronize()

    patch.setattr(device_arena, "_windows", halves)
    patch.setattr(DeviceArena, "__init__", hasty)


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


def inputs_let_go_before_they_are_copied(patch: Patch) -> None:
    """In fp32 the session keeps them by chance: they are converted to nothing."""
    upload = CudaDevice.upload

    def forgotten(self: CudaDevice, address: int, array: np.ndarray) -> None:
        upload(self, address, array)
        self._uploading.clear()

    patch.setattr(CudaDevice, "upload", forgotten)


def inputs_left_in_fp32(patch: Patch) -> None:
    uploaded = GpuBackend._uploaded

    def as_they_come(self: GpuBackend, role: str, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        plan = self._plans[role]
        right, plan.dtypes = plan.dtypes, {name: array.dtype for name, array in inputs.items()}
        try:
            return uploaded(self, role, inputs)
        finally:
            plan.dtypes = right

    patch.setattr(GpuBackend, "_uploaded", as_they_come)


def cache_rows_as_long_as_in_fp32(patch: Patch) -> None:
    patch.setattr(DeviceCache, "token_bytes", property(lambda self: self._decoder.head_dim * 4))


def a_run_of_rtx_captured_from_outside(patch: Patch) -> None:
    """Which keeps the kernels that serve until those for its shapes are compiled."""
    patch.setattr(TensorRTPlan, "captures_itself", False)


def runtime_cache_gone_before_its_context(patch: Patch) -> None:
    lend = TensorRTPlan.lend_activations

    def forgotten(self: TensorRTPlan, memory: Any) -> None:
        lend(self, memory)
        self._rtx = None

    patch.setattr(TensorRTPlan, "lend_activations", forgotten)


BUGS: tuple[Callable[[Patch], None], ...] = (
    no_wait_before_logits_are_read,
    keys_and_values_swapped_in_decode,
    shape_of_the_run_before,
    tokens_written_one_place_too_far,
    output_beside_the_cache_that_it_updates,
    caches_begin_uninitialised,
    weights_freed_while_plans_read_them,
    a_plan_without_memory_for_activations,
    beams_moved_one_after_the_other,
    weights_read_from_a_tensor_too_early,
    weights_overwritten_before_they_are_copied,
    every_second_head_of_a_beam_moved,
)
# Of what RTX alone has.
RTX_BUGS: tuple[Callable[[Patch], None], ...] = (
    a_run_of_rtx_captured_from_outside,
    runtime_cache_gone_before_its_context,
)
# Of decode steps that the backend captures.
CAPTURE_BUGS: tuple[Callable[[Patch], None], ...] = (a_graph_of_other_addresses_launched,)
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
# Of plans that compute in another precision than the host.
FP16_BUGS: tuple[Callable[[Patch], None], ...] = (
    inputs_let_go_before_they_are_copied,
    inputs_left_in_fp32,
    cache_rows_as_long_as_in_fp32,
)
CASES: tuple[tuple[Precision, PlanKind, Callable[[Patch], None]], ...] = (
    *(("fp32", RTX, bug) for bug in (*BUGS, *RTX_BUGS)),
    *(("fp32", TENSORRT, bug) for bug in CAPTURE_BUGS),
    *(("fp32", LEGACY, bug) for bug in LEGACY_BUGS),
    *(("fp16", RTX, bug) for bug in FP16_BUGS),
)


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where compiled kernels are kept."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest, micro_engine: EngineOf) -> Bundle:
    """In the precision that a test asks for."""
    return Bundle.open(micro_engine("internlm2", request.param))


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> list[np.ndarray]:
    return conversation(TroL(bundle))


@pytest.mark.parametrize("kind", [RTX, TENSORRT, LEGACY], ids=" ".join)
@pytest.mark.parametrize("bundle", ["fp32", "fp16"], indirect=True)
def test_without_a_bug_it_is_the_cpus(
    bundle: Bundle, expected: list[np.ndarray], monkeypatch: Patch, kind: PlanKind
) -> None:
    assert_same(conversation(gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch, kind))), expected, bundle)


# What a bug leaves on the stream may show once more as the device goes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("bundle", "kind", "bug"),
    CASES,
    indirect=["bundle"],
    ids=[bug.__name__.replace("_", " ") for _, _, bug in CASES],
)
def test_a_bug_is_caught(
    bundle: Bundle, expected: list[np.ndarray], monkeypatch: Patch, kind: PlanKind, bug: Callable[[Patch], None]
) -> None:
    bug(monkeypatch)
    with pytest.raises(CAUGHT):
        assert_same(conversation(gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch, kind))), expected, bundle)


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], bundle: Bundle) -> None:
    """Within the budget of the precision that the plans compute in; the CPU always does in fp32."""
    budget = BUDGETS[bundle.manifest.precision].relative
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= budget * np.abs(other).max()


def test_the_page_names_every_bug() -> None:
    page = (Path(__file__).parents[2] / "docs/without-a-gpu.md").read_text(encoding="utf-8")
    section = page.split("## Bugs that it must catch", 1)[1].split("\n## ", 1)[0]
    listed = [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]
    assert listed == [bug.__name__.replace("_", " ") for _, _, bug in CASES]
