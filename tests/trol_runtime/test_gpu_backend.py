"""The GPU backend on a GPU that is none: the same tokens as on the CPU, from the same session code, in both forms.

tests/fake_gpu keeps what CUDA and TensorRT ask of their callers and runs the plans' graphs with ONNX Runtime. Not run
on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from conftest import MICRO_MAX_SEQ, EngineOf
from small_prompts import assert_close, picture

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.engine import FakeGpu, gpu_model, put_on_fake_gpu
from fake_gpu.memory import Fault
from fake_gpu.tensorrt import FakeRuntimeCache
from trol_runtime import TroL
from trol_runtime.bundle import Bundle
from trol_runtime.errors import LimitError
from trol_runtime.manifest import Opset

PICTURE = picture(40, 40)
QUESTION = "What is in the picture?"


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where compiled kernels are kept."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["internlm2", "phi3"])
def bundle(request: pytest.FixtureRequest, micro_engine: EngineOf) -> Bundle:
    return Bundle.open(micro_engine(request.param))


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> TroL:
    return TroL(bundle)


@pytest.fixture(scope="module", params=["modern", "legacy"])
def opset(request: pytest.FixtureRequest) -> Opset:
    return request.param


@pytest.fixture(scope="module")
def gpu(bundle: Bundle, opset: Opset) -> Iterator[FakeGpu]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield put_on_fake_gpu(bundle, monkeypatch, opset)


@pytest.fixture(scope="module")
def model(bundle: Bundle, gpu: FakeGpu) -> TroL:
    return gpu_model(bundle, gpu)


def test_an_answer_about_a_picture_is_the_cpus(cpu: TroL, model: TroL) -> None:
    options = {"images": [PICTURE], "max_new_tokens": 12}
    assert model.generate(QUESTION, **options) == cpu.generate(QUESTION, **options)  # type: ignore[call-overload]


def test_embeddings_and_logits_are_the_cpus(cpu: TroL, model: TroL) -> None:
    pixels = cpu.preprocess([PICTURE, PICTURE])
    assert_close(model.session.encode(pixels), cpu.session.encode(pixels))
    ids = np.array([[1, 5, 9, 33, 4]])
    assert_close(model.session.prefill(ids), cpu.session.prefill(ids))
    for token in (7, 8, 9):
        assert_close(model.session.decode(np.array([token])), cpu.session.decode(np.array([token])))


def test_beams_are_the_cpus(cpu: TroL, model: TroL) -> None:
    options = {"images": [PICTURE], "max_new_tokens": 8, "num_beams": 3}
    assert model.generate(QUESTION, **options) == cpu.generate(QUESTION, **options)  # type: ignore[call-overload]


def test_rows_of_different_lengths_are_the_cpus(cpu: TroL, model: TroL) -> None:
    ids = np.array([[0, 0, 5, 9, 33], [1, 7, 3, 4, 44], [0, 0, 0, 0, 8]])
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    found, expected = (one.generate_ids(ids, attention_mask=mask, max_new_tokens=6) for one in (model, cpu))
    assert found.tolist() == expected.tolist()


def test_a_chat_and_its_kept_prefix_are_the_cpus(cpu: TroL, model: TroL) -> None:
    said = []
    for one in (model, cpu):
        chat = one.chat(max_new_tokens=5)
        said.append(["".join(chat.ask(QUESTION, [PICTURE])), "".join(chat.ask("And now?"))])
    assert said[0] == said[1]


def test_chunks_are_the_cpus(cpu: TroL, model: TroL) -> None:
    ids = np.arange(5, 45)[None]
    chunked = model.new_session(prefill_chunk=16)
    assert_close(chunked.prefill(ids), cpu.new_session().prefill(ids))


def test_forks_go_their_own_ways(cpu: TroL, model: TroL) -> None:
    ids = np.array([[1, 5, 9, 33, 4]])
    logits = []
    for one in (model, cpu):
        session = one.new_session(keep_prefix=True)
        session.prefill(ids)
        fork = session.fork()
        logits.append([session.decode(np.array([7])), fork.decode(np.array([8])), session.extend(np.array([[3]]))])
    for found, expected in zip(*logits, strict=True):
        assert_close(found, expected)


def test_two_sessions_take_turns(cpu: TroL, model: TroL) -> None:
    prompts = [np.array([[1, 5, 9, 33, 4]]), np.array([[1, 80, 3]])]
    steps = []
    for one in (model, cpu):
        sessions = [one.new_session(), one.new_session()]
        logits = [session.prefill(ids) for session, ids in zip(sessions, prompts, strict=True)]
        logits += [session.decode(np.array([token])) for token in (7, 8, 9) for session in sessions]
        steps.append(logits)
    for found, expected in zip(*steps, strict=True):
        assert_close(found, expected)


def test_threads_take_turns(cpu: TroL, model: TroL) -> None:
    questions = [f"{number} {QUESTION}" for number in range(6)]
    with ThreadPoolExecutor(3) as threads:
        said = list(threads.map(lambda question: model.generate(question, [PICTURE], max_new_tokens=6), questions))
    assert said == [cpu.generate(question, [PICTURE], max_new_tokens=6) for question in questions]


def test_a_row_can_be_filled_to_the_engines_limit(cpu: TroL, model: TroL) -> None:
    ids = np.full((1, MICRO_MAX_SEQ - 2), 9)
    for one in (model, cpu):
        one.session.prefill(ids)
        one.session.decode(np.array([7]))
    assert_close(model.session.decode(np.array([8])), cpu.session.decode(np.array([8])))


def test_decode_steps_become_one_launch(model: TroL, gpu: FakeGpu) -> None:
    session = model.new_session()
    session.prefill(np.array([[1, 5, 9]]))
    before = gpu.cuda.launched_graphs
    for token in range(5, 10):
        session.decode(np.array([token]))
    assert gpu.cuda.launched_graphs - before >= 4 - 1  # the first as it is, and from then on graphs


def test_a_plan_that_cannot_be_captured_is_run_as_it_is(
    bundle: Bundle, cpu: TroL, monkeypatch: pytest.MonkeyPatch, opset: Opset
) -> None:
    gpu = put_on_fake_gpu(bundle, monkeypatch, opset)
    gpu.cuda.capturable = False
    model = gpu_model(bundle, gpu)
    assert model.generate(QUESTION, max_new_tokens=6) == cpu.generate(QUESTION, max_new_tokens=6)
    assert gpu.cuda.launched_graphs == 0


def test_what_rtx_compiled_is_taken_at_the_next_start(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    taken = []
    for _ in range(2):
        before = FakeRuntimeCache.taken
        gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch)).generate(QUESTION, max_new_tokens=2)
        taken.append(FakeRuntimeCache.taken - before)
    assert taken == [0, 2]  # prefill and decode; vision and extend did not run


def test_compiled_kernels_of_another_machine_are_made_anew(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch))
    model.generate(QUESTION, max_new_tokens=2)
    kept = sorted((tmp_path / "trol-export" / "rtx").iterdir())
    for file in kept:
        file.write_bytes(b"of another GPU")
    gpu_model(bundle, put_on_fake_gpu(bundle, monkeypatch)).generate(QUESTION, max_new_tokens=2)
    assert {file.read_bytes() for file in kept} == {b"compiled"}


def test_weights_lie_on_the_device_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = put_on_fake_gpu(bundle, monkeypatch)
    weights = sum(tensor.nbytes for tensor in bundle.manifest.tensors.values())
    # Beside them the file's header, paddings, and what the plans compute in.
    assert weights <= gpu.cuda.memory.in_use <= weights + 64 * 1024


def test_a_session_that_begins_anew_takes_no_further_memory(model: TroL, gpu: FakeGpu) -> None:
    ids = np.array([[1, 5, 9]])
    model.session.prefill(ids)
    before = gpu.cuda.memory.in_use
    for _ in range(3):
        model.session.prefill(ids)
    assert gpu.cuda.memory.in_use == before


def test_new_rows_take_memory_once_and_twice_what_they_need_at_most(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = put_on_fake_gpu(bundle, monkeypatch, "legacy")
    model = gpu_model(bundle, gpu)
    decoder = bundle.manifest.model.decoder
    ids = np.full((1, 300), 9)
    model.session.prefill(ids)
    needed = 2 * decoder.layers * decoder.kv_heads * ids.size * decoder.head_dim * 4
    held = gpu.device._in_use["new keys and values"]
    assert needed <= held <= 2 * needed
    for tokens in (40, 300):
        model.session.prefill(ids[:, :tokens])
        model.session.decode(np.array([7]))
    assert gpu.device._in_use["new keys and values"] == held


def test_without_memory_the_numbers_are_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = put_on_fake_gpu(bundle, monkeypatch)
    model = gpu_model(bundle, gpu)
    gpu.cuda.memory.total = gpu.cuda.memory.in_use + 1000
    with pytest.raises(LimitError) as refused:
        model.session.prefill(np.array([[1, 5, 9]]))
    assert str(refused.value).startswith("the GPU has no ")
    assert " for KV cache: it holds " in str(refused.value)
    assert " of weights + " in str(refused.value)
    assert " are free; close what else uses it, or export with a smaller --max-seq or --max-batch" in str(refused.value)


def test_a_damaged_arena_never_reaches_the_device(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from trol_runtime.errors import EngineFileError

    hashes = replace(bundle.manifest.sha256, arena_blocks=("0" * 64,) * len(bundle.manifest.sha256.arena_blocks))
    damaged = replace(bundle, manifest=replace(bundle.manifest, sha256=hashes))
    with pytest.raises(EngineFileError, match=r"block 0 of weights\.safetensors is damaged; copy or export"):
        put_on_fake_gpu(damaged, monkeypatch)


def test_the_fake_finds_what_a_gpu_would_forgive(gpu: FakeGpu) -> None:
    address = gpu.device.allocate(512, "a test").address
    gpu.cuda.memory.view(address, 512)
    with pytest.raises(Fault, match="end behind their allocation"):
        gpu.cuda.memory.view(address, 513)
    with pytest.raises(Fault, match="is no device memory"):
        gpu.cuda.memory.view(1, 1)
