"""The CPU backend: caches written in place, all roles on one set of weights, clear words about files and packages."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from recorded_machines import recorded
from small_engine import write_small_engine
from small_prompts import assert_close, picture, text_ids
from trol_runtime import TroL, cpu_backend, ort_session
from trol_runtime.bundle import Bundle
from trol_runtime.cpu_backend import CpuBackend, mapped_session
from trol_runtime.errors import EngineFileError, LimitError, MissingExtraError, NumericError, TrolError
from trol_runtime.kv_cache import KVCache
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import rope_rows


@pytest.fixture(scope="module")
def bundle(arch: Any, micro_engine: Callable[..., Path]) -> Bundle:
    return Bundle.open(micro_engine(arch))


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> CpuBackend:
    return CpuBackend(bundle)


@pytest.fixture
def config(bundle: Bundle) -> ModelConfig:
    return bundle.manifest.model


def cache_of(config: ModelConfig, rows: int = 1, tokens: int = 100, keeps_second_pass: bool = False) -> KVCache:
    cache = KVCache(config.decoder, 640, keeps_second_pass)
    cache.allocate(rows, tokens)
    return cache


def prefill(backend: CpuBackend, cache: KVCache, config: ModelConfig, tokens: int) -> np.ndarray:
    cos, sin = rope_rows(config.decoder, np.arange(tokens)[None], tokens)
    return backend.prefill(cache, text_ids(config, tokens), no_picture(config), cos, sin)


def extend(backend: CpuBackend, cache: KVCache, config: ModelConfig, begin: int, end: int, tokens: int) -> np.ndarray:
    """Tokens `begin` to `end` of the prompt of `tokens` that `prefill` above runs."""
    cos, sin = rope_rows(config.decoder, np.arange(begin, end)[None], tokens)
    mask = (np.arange(cache.capacity) <= np.arange(begin, end)[:, None])[None, None]
    ids = text_ids(config, tokens)[:, begin:end]
    return backend.extend(cache, ids, no_picture(config), np.array([begin]), mask, cos, sin)


def no_picture(config: ModelConfig) -> np.ndarray:
    return np.zeros((0, config.decoder.hidden_size), np.float32)


def decode(backend: CpuBackend, cache: KVCache, config: ModelConfig, lengths: list[int]) -> np.ndarray:
    written = np.array(lengths)
    tables = [rope_rows(config.decoder, np.array([[length]]), length + 1) for length in lengths]
    cos, sin = (np.concatenate(table) for table in zip(*tables, strict=True))
    mask = (np.arange(cache.capacity) <= written[:, None])[:, None, None]
    return backend.decode(cache, np.full(len(lengths), 5), written, mask, cos, sin)


def written_positions(cache: KVCache, row: int = 0, second_pass: bool = False) -> list[int]:
    """Positions that hold something, which are the same in every key and value of every layer."""
    buffers = cache.second_pass if second_pass else cache.first_pass
    filled = {tuple(np.flatnonzero(buffer[row].any(axis=(0, 2))).tolist()) for buffer in buffers}
    assert len(filled) == 1
    return list(filled.pop())


def test_prefill_writes_its_rows_into_the_buffers_it_is_given(backend: CpuBackend, config: ModelConfig) -> None:
    cache = cache_of(config)
    addresses = [buffer.ctypes.data for buffer in cache.first_pass]
    prefill(backend, cache, config, tokens=9)
    assert written_positions(cache) == list(range(9))
    assert [buffer.ctypes.data for buffer in cache.first_pass] == addresses


def test_decode_adds_one_position_in_place_and_leaves_the_others(backend: CpuBackend, config: ModelConfig) -> None:
    cache = cache_of(config)
    prefill(backend, cache, config, tokens=9)
    before = [buffer.copy() for buffer in cache.first_pass]
    addresses = [buffer.ctypes.data for buffer in cache.first_pass]
    decode(backend, cache, config, [9])
    assert written_positions(cache) == list(range(10))
    for old, new in zip(before, cache.first_pass, strict=True):
        np.testing.assert_array_equal(new[:, :, :9], old[:, :, :9])
    assert [buffer.ctypes.data for buffer in cache.first_pass] == addresses


def test_extend_writes_both_passes_in_place_and_leaves_what_is_in_front(
    backend: CpuBackend, config: ModelConfig
) -> None:
    cache = cache_of(config, keeps_second_pass=True)
    buffers = [*cache.first_pass, *cache.second_pass]
    addresses = [buffer.ctypes.data for buffer in buffers]
    extend(backend, cache, config, 0, 6, tokens=9)
    before = [buffer.copy() for buffer in buffers]
    extend(backend, cache, config, 6, 9, tokens=9)
    assert [written_positions(cache, second_pass=second) for second in (False, True)] == [list(range(9))] * 2
    for old, new in zip(before, buffers, strict=True):
        np.testing.assert_array_equal(new[:, :, :6], old[:, :, :6])
    assert [buffer.ctypes.data for buffer in buffers] == addresses


def test_a_prompt_in_two_parts_gives_what_it_gives_at_once(backend: CpuBackend, config: ModelConfig) -> None:
    at_once, parts = cache_of(config), cache_of(config, keeps_second_pass=True)
    expected = prefill(backend, at_once, config, tokens=9)
    extend(backend, parts, config, 0, 8, tokens=9)
    assert_close(extend(backend, parts, config, 8, 9, tokens=9), expected)  # a part of one token: two passes still
    for one, other in zip(at_once.first_pass, parts.first_pass, strict=True):
        assert_close(other, one)
    assert_close(decode(backend, parts, config, [9]), decode(backend, at_once, config, [9]))


def test_decode_and_prefill_leave_the_second_pass_alone(backend: CpuBackend, config: ModelConfig) -> None:
    cache = cache_of(config, keeps_second_pass=True)
    prefill(backend, cache, config, tokens=9)
    decode(backend, cache, config, [9])
    assert written_positions(cache, second_pass=True) == []


def test_every_row_of_a_batch_has_a_position_of_its_own(backend: CpuBackend, config: ModelConfig) -> None:
    cache = cache_of(config, rows=2)
    prefill(backend, cache.row(0), config, tokens=9)
    prefill(backend, cache.row(1), config, tokens=4)
    assert decode(backend, cache, config, [9, 4]).shape == (2, config.decoder.vocab_size)
    assert [written_positions(cache, row) for row in range(2)] == [list(range(10)), list(range(5))]


def test_what_lies_beyond_a_rows_length_has_no_effect(backend: CpuBackend, config: ModelConfig) -> None:
    clean, used = (cache_of(config, keeps_second_pass=True) for _ in range(2))
    for buffer in [*used.first_pass, *used.second_pass]:
        buffer[:, :, 6:] = 1e3
    logits = []
    for cache in (clean, used):
        extend(backend, cache, config, 0, 6, tokens=9)
        logits.append(extend(backend, cache, config, 6, 9, tokens=9))
    np.testing.assert_array_equal(logits[1], logits[0])
    np.testing.assert_array_equal(decode(backend, used, config, [9]), decode(backend, clean, config, [9]))


def test_logits_stay_when_the_next_run_comes(backend: CpuBackend, config: ModelConfig) -> None:
    """The array is the caller's, not a buffer of ONNX Runtime's that is written again."""
    cache = cache_of(config)
    logits = prefill(backend, cache, config, tokens=9)
    kept = logits.copy()
    decode(backend, cache, config, [9])
    np.testing.assert_array_equal(logits, kept)


def test_both_graphs_are_loaded_at_once_and_none_later(
    model: TroL, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may be replaced once an engine is loaded."""
    loaded: list[bytes] = []
    session = onnxruntime.InferenceSession

    def recorded(graph: bytes, *arguments: Any, **options: Any) -> Any:
        loaded.append(graph)
        return session(graph, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    backend = CpuBackend(bundle)
    assert len(loaded) == 2
    backend.encode(model.preprocess([picture(20, 20)]))
    assert len(loaded) == 2


def test_an_engine_without_a_cpu_plan_says_how_to_get_one(tmp_path: Path) -> None:
    engine = write_small_engine(tmp_path / "engine.plan")
    with pytest.raises(EngineFileError) as caught:
        CpuBackend(Bundle.open(engine))
    assert str(caught.value) == (
        f"{engine} has no CPU plan (plans/cpu/model.onnx is missing); export it with: trol-export --target cpu"
    )


def test_an_engine_of_before_the_extend_role_is_refused_when_it_is_loaded(
    bundle: Bundle, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graphs have logits and the first pass's caches as outputs."""
    earlier = SimpleNamespace(get_outputs=lambda: [None] * (1 + 2 * config.decoder.layers))
    monkeypatch.setattr(cpu_backend, "mapped_session", lambda *_: earlier)
    with pytest.raises(EngineFileError) as caught:
        CpuBackend(bundle)
    assert str(caught.value) == (
        f"{bundle.path} was written by an earlier version (its CPU plan has no extend role); export it again"
    )


@pytest.mark.parametrize("graph", [b"", b"no protobuf", b"\x08\x0a", b"\x0b"])
def test_a_graph_that_onnxruntime_refuses_is_one_line(bundle: Bundle, graph: bytes) -> None:
    with pytest.raises(EngineFileError) as caught:
        mapped_session(bundle, graph)
    message = str(caught.value)
    assert message.startswith(f"{bundle.path.resolve()}: onnxruntime {onnxruntime.__version__} cannot load a graph (")
    assert message.endswith("); upgrade onnxruntime or export the engine again")
    assert "\n" not in message


def test_a_missing_onnxruntime_is_one_line_with_the_command(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    machine = recorded("no_gpu")
    machine = replace(machine, packages={**machine.packages, "onnxruntime": None})
    monkeypatch.setattr(ort_session, "describe_machine", lambda: machine)
    with pytest.raises(MissingExtraError) as caught:
        CpuBackend(bundle)
    assert str(caught.value) == "onnxruntime is missing; run: pip install 'trol-export[cpu]'"


def test_a_jetson_without_onnxruntime_is_sent_to_tensorrt(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(ort_session, "describe_machine", lambda: recorded("orin_nano_jetpack_6_2_2"))
    with pytest.raises(TrolError, match=r"this is 3\.10\.12; take --backend tensorrt$"):
        CpuBackend(bundle)


def test_an_onnxruntime_that_is_installed_and_broken_is_one_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(ort_session, "describe_machine", lambda: recorded("no_gpu"))
    with pytest.raises(MissingExtraError) as caught:
        CpuBackend(bundle)
    assert str(caught.value).startswith("onnxruntime is installed and cannot be imported (import of onnxruntime halted")
    assert str(caught.value).endswith("; run: pip install --force-reinstall onnxruntime")


def test_an_onnxruntime_that_is_too_old_is_refused_before_it_reads_a_graph(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = recorded("no_gpu")
    machine = replace(machine, packages={**machine.packages, "onnxruntime": "1.23.2"})
    monkeypatch.setattr(ort_session, "describe_machine", lambda: machine)
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(MissingExtraError, match=r"^onnxruntime 1\.23\.2 is older than 1\.24; run: pip install -U "):
        CpuBackend(bundle)


def test_weights_that_are_no_numbers_are_an_error(bundle: Bundle, config: ModelConfig, tmp_path: Path) -> None:
    engine = Path(shutil.copy(bundle.path, tmp_path / "engine.plan"))
    name = "output.weight" if config.arch == "internlm2" else "language_model.lm_head.weight"
    with engine.open("r+b") as file:
        file.seek(bundle.arena_offset + bundle.manifest.tensors[name].offset)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(NumericError) as caught:
        TroL.load(engine).session.prefill(text_ids(config, 5))
    assert str(caught.value) == (
        "the logits of row 0 are not finite; check the weights with: trol-inspect ENGINE --verify, or export fp32"
    )


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (
            "Non-zero status code while running Add node. bad allocation\nand more",
            LimitError,
            "there is not enough memory for the activations of this run; free some, send a shorter prompt or fewer "
            "pictures, or read prompts in parts: prefill_chunk=256, --prefill-chunk 256",
        ),
        (
            "Failed to allocate memory for requested buffer of size 8",
            LimitError,
            "there is not enough memory for the activations of this run; free some, send a shorter prompt or fewer "
            "pictures, or read prompts in parts: prefill_chunk=256, --prefill-chunk 256",
        ),
        (
            "Non-zero status code\nwhile running Gather node",
            EngineFileError,
            "PATH: a graph fails as it runs (Non-zero status code while running Gather node); check the file with: "
            "trol-inspect --verify",
        ),
    ],
    ids=["bad allocation", "no buffer", "another reason"],
)
def test_a_run_that_fails_is_one_line(
    model: TroL, bundle: Bundle, config: ModelConfig, raised: str, error: type[Exception], message: str
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(raised)

    backend = CpuBackend(bundle)
    for role in ("_vision", "_language"):
        broken = SimpleNamespace(io_binding=getattr(backend, role).io_binding, run=fail, run_with_iobinding=fail)
        setattr(backend, role, broken)
    runs: list[Callable[[], object]] = [
        lambda: backend.encode(model.preprocess([picture(20, 20)])),
        lambda: prefill(backend, cache_of(config), config, tokens=9),
    ]
    for run in runs:
        with pytest.raises(error) as caught:
            run()
        assert str(caught.value) == message.replace("PATH", str(bundle.path))


def test_the_number_of_threads_does_not_change_the_choice(bundle: Bundle, config: ModelConfig) -> None:
    ids = text_ids(config, 50)
    one, two = (TroL(bundle, threads).session.prefill(ids) for threads in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(one).max())
