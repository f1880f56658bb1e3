"""The GPU backend on a GPU that is none: the same tokens as on the CPU, from the same session code, in both forms.

tests/fake_gpu keeps what CUDA and TensorRT ask of their callers and runs the plans' graphs with ONNX Runtime. Not run
on a GPU yet.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from conftest import MICRO_MAX_BATCH, MICRO_MAX_SEQ, EngineOf
from small_conversation import PICTURE, conversation
from small_prompts import assert_close

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

from fake_gpu.engine import LEGACY, RTX, TENSORRT, FakeGpu, PlanKind, gpu_model, plans_of, put_on_fake_gpu
from fake_gpu.memory import Fault
from fake_gpu.tensorrt import FakeRuntimeCache
from trol_export.parity import BUDGETS
from trol_runtime import TroL, native_runs
from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.errors import EngineFileError, LimitError, TrolError
from trol_runtime.gpu_backend import GpuBackend
from trol_runtime.manifest import Limits
from trol_runtime.tensorrt_plan import TensorRTPlan

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


@pytest.fixture(scope="module", params=[RTX, TENSORRT, LEGACY], ids=" ".join)
def kind(request: pytest.FixtureRequest) -> PlanKind:
    return request.param


@pytest.fixture(scope="module")
def gpu(bundle: Bundle, kind: PlanKind) -> Iterator[FakeGpu]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield put_on_fake_gpu(bundle, monkeypatch, kind)


@pytest.fixture(scope="module")
def model(bundle: Bundle, gpu: FakeGpu) -> TroL:
    return gpu_model(bundle, gpu)


# What the CPU says


def greedy(model: TroL) -> str:
    return model.generate(QUESTION, [PICTURE], max_new_tokens=12)


def drawn(model: TroL) -> str:
    return model.generate(QUESTION, [PICTURE], max_new_tokens=12, temperature=1.0, top_p=0.9, seed=11)


def drawn_and_penalised(model: TroL) -> str:
    return model.generate(QUESTION, max_new_tokens=12, top_k=20, min_p=0.01, repetition_penalty=1.2, seed=5)


def beams(model: TroL) -> str:
    return model.generate(QUESTION, [PICTURE], max_new_tokens=8, num_beams=3)


def streamed(model: TroL) -> list[str]:
    return list(model.generate(QUESTION, [PICTURE], max_new_tokens=12, stream=True))


def stopped(model: TroL) -> tuple[str, str | None]:
    """At a text that comes in the middle of what it would say."""
    stop = model.generate(QUESTION, max_new_tokens=20)[5:8]
    answer = model.start(QUESTION, max_new_tokens=20, stop=stop)
    return "".join(answer), answer.finish_reason


def rows_of_different_lengths(model: TroL) -> list[list[int]]:
    ids = np.array([[0, 0, 5, 9, 33], [1, 7, 3, 4, 44], [0, 0, 0, 0, 8]])
    return model.generate_ids(ids, attention_mask=(ids > 0).astype(np.int64), max_new_tokens=6).tolist()


def chat(model: TroL) -> list[str]:
    """Its second turn goes on behind the first, which the cache keeps."""
    talk = model.chat(max_new_tokens=5)
    return ["".join(talk.ask(QUESTION, [PICTURE])), "".join(talk.ask("And now?"))]


def forks(model: TroL) -> list[str]:
    """Two conversations with one beginning, in turns."""
    talk = model.chat(max_new_tokens=6)
    said = ["".join(talk.ask(QUESTION, [PICTURE]))]
    fork = talk.fork()
    asked = [(talk, "And now?"), (fork, "Why is that so?"), (talk, "What else?"), (fork, "And now?")]
    return said + ["".join(one.ask(question)) for one, question in asked]


def two_sessions(model: TroL) -> list[tuple[str | None, ...]]:
    """Two answers, a piece of each in turn."""
    answers = [
        model.generate(question, pictures, session=model.new_session(), max_new_tokens=10, stream=True)
        for question, pictures in ((QUESTION, [PICTURE]), ("Who are you?", []))
    ]
    return list(zip_longest(*answers))


@pytest.mark.parametrize(
    "say",
    [
        *(greedy, drawn, drawn_and_penalised, beams, streamed, stopped, rows_of_different_lengths, chat, forks),
        two_sessions,
    ],
)
def test_answers_are_the_cpus(cpu: TroL, model: TroL, say: Callable[[TroL], Any]) -> None:
    assert say(model) == say(cpu)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_tokens_and_their_probabilities_are_the_cpus(cpu: TroL, model: TroL, options: dict[str, Any]) -> None:
    ids = np.array([[1, 5, 9, 33, 4]])
    found, expected = (one.complete(ids, max_new_tokens=8, **options) for one in (model, cpu))
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert_close(found.logprobs, expected.logprobs)
    assert_close(found.scores, expected.scores)


def test_embeddings_and_logits_are_the_cpus(cpu: TroL, model: TroL) -> None:
    for found, expected in zip(conversation(model), conversation(cpu), strict=True):
        assert_close(found, expected)


def test_pictures_of_several_runs_are_the_cpus(cpu: TroL, model: TroL) -> None:
    pixels = cpu.preprocess([PICTURE, PICTURE])
    assert_close(model.session.encode(pixels), cpu.session.encode(pixels))


def test_chunks_are_the_cpus(cpu: TroL, model: TroL) -> None:
    ids = np.arange(5, 45)[None]
    chunked = model.new_session(prefill_chunk=16)
    assert_close(chunked.prefill(ids), cpu.new_session().prefill(ids))


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


def test_a_model_that_goes_gives_its_memory_back(bundle: Bundle, kind: PlanKind) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        gpu = put_on_fake_gpu(bundle, monkeypatch, kind)
        cuda, model = gpu.cuda, gpu_model(bundle, gpu)
        model.generate(QUESTION, max_new_tokens=3)
        assert cuda.memory.in_use > bundle.entries[ARENA_ENTRY].size
        del gpu, model
        gc.collect()
        assert cuda.memory.in_use == 0


def test_the_end_of_the_program_waits_for_a_run_of_another_thread(
    model: TroL, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`native_runs` says what happens otherwise."""
    running, enqueue = [], TensorRTPlan.enqueue

    def noted(plan: TensorRTPlan) -> None:
        running.append(native_runs._runs._running)
        enqueue(plan)

    monkeypatch.setattr(TensorRTPlan, "enqueue", noted)
    session = model.new_session()

    def work() -> None:
        embeds = session.encode(np.zeros((1, 3, *[model.config.vision.image_size] * 2), np.float32))
        session.prefill(np.array([[1, *[model.config.image_token_id] * embeds.shape[1], 9]]), embeds)
        session.decode(np.array([7]))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    assert running == [1, 1, 1]


def test_decode_steps_become_one_launch(model: TroL, gpu: FakeGpu) -> None:
    session = model.new_session()
    session.prefill(np.array([[1, 5, 9]]))
    before = gpu.cuda.launched_graphs
    for token in range(5, 10):
        session.decode(np.array([token]))
    assert gpu.cuda.launched_graphs - before >= 4  # the first may be as it is


def test_a_plan_that_cannot_be_captured_is_run_as_it_is(
    bundle: Bundle, cpu: TroL, monkeypatch: pytest.MonkeyPatch, kind: PlanKind
) -> None:
    gpu = put_on_fake_gpu(bundle, monkeypatch, kind)
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
    gpu = put_on_fake_gpu(bundle, monkeypatch, LEGACY)
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


def test_growing_prompts_take_no_more_memory_than_the_longest_of_them(bundle: Bundle, kind: PlanKind) -> None:
    """In two parts each, so that the mask over the second grows with its length. The longest is asked twice, as what
    decoding needs is there only from the second prompt on."""
    plans = plans_of(bundle, kind.opset)

    def most_taken(lengths: Sequence[int]) -> int:
        with pytest.MonkeyPatch.context() as monkeypatch:
            gpu = put_on_fake_gpu(bundle, monkeypatch, kind, plans)
            model, taken = gpu_model(bundle, gpu), watch_memory(gpu, monkeypatch)
            for length in lengths:
                session = model.new_session(prefill_chunk=length)
                session.prefill(np.full((1, 2 * length), 9))
                session.decode(np.array([7]))
            return max(total for total, _ in taken)

    assert most_taken(range(20, 301, 40)) <= most_taken([300, 300])


def test_nothing_lies_idle_when_more_memory_is_taken(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: PlanKind
) -> None:
    gpu = put_on_fake_gpu(bundle, monkeypatch, kind)
    model, taken = gpu_model(bundle, gpu), watch_memory(gpu, monkeypatch)
    for say in (greedy, beams, rows_of_different_lengths, chat, greedy):
        say(model)
    assert taken
    assert {idle for _, idle in taken} == {0}


def watch_memory(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Filled whenever the driver gives memory: bytes that are taken from it then, and of those it gave before, how many
    nobody holds."""
    taken, allocated = [], CudaDevice._allocated

    def watched(device: CudaDevice, nbytes: int, what: str) -> int:
        address = allocated(device, nbytes, what)
        total = gpu.cuda.memory.in_use
        taken.append((total, total - nbytes - sum(device._in_use.values())))
        return address

    monkeypatch.setattr(CudaDevice, "_allocated", watched)
    return taken


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
    hashes = replace(bundle.manifest.sha256, arena_blocks=("0" * 64,) * len(bundle.manifest.sha256.arena_blocks))
    damaged = replace(bundle, manifest=replace(bundle.manifest, sha256=hashes))
    with pytest.raises(EngineFileError, match=r"block 0 of weights\.safetensors is damaged; copy or export"):
        put_on_fake_gpu(damaged, monkeypatch)


def test_a_fork_of_the_process_says_to_load_the_engine_there(model: TroL, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()
    model.session.prefill(np.array([[1, 5, 9]]))
    pixels = model.preprocess([PICTURE])
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: parent + 1)
        for use in (
            lambda: model.session.encode(pixels),
            lambda: model.session.decode(np.array([7])),
            lambda: model.session.repeat(2),
            lambda: model.generate(QUESTION),
        ):
            with pytest.raises(TrolError) as refused:
                use()
            assert str(refused.value).startswith(f"the engine was loaded in process {parent} and is used in its fork")


def test_the_fake_finds_what_a_gpu_would_forgive(gpu: FakeGpu) -> None:
    address = gpu.device.allocate(512, "a test").address
    gpu.cuda.memory.view(address, 512)
    with pytest.raises(Fault, match="end behind their allocation"):
        gpu.cuda.memory.view(address, 513)
    with pytest.raises(Fault, match="is no device memory"):
        gpu.cuda.memory.view(1, 1)


# fp16. Its tokens need not be the CPU's, which computes in fp32 on the same weights: numbers are held to the budget of
# this precision, and choices to what it cannot tell apart. A wrong stride or type is off by the numbers themselves.

FP16_BUDGET = BUDGETS["fp16"].relative
ODD_MAX_SEQ = MICRO_MAX_SEQ - 3  # of which no row is a multiple of 256 bytes in fp16


@pytest.fixture(scope="module", params=["internlm2", "phi3"])
def fp16_bundle(request: pytest.FixtureRequest, micro_engine: EngineOf) -> Bundle:
    """For an odd number of tokens, as an export with --max-seq 637."""
    bundle = Bundle.open(micro_engine(request.param, "fp16"))
    return replace(bundle, manifest=replace(bundle.manifest, limits=Limits(ODD_MAX_SEQ, MICRO_MAX_BATCH)))


@pytest.fixture(scope="module")
def fp16_cpu(fp16_bundle: Bundle) -> TroL:
    return TroL(fp16_bundle)


@pytest.fixture(scope="module")
def fp16_model(fp16_bundle: Bundle, kind: PlanKind) -> Iterator[TroL]:
    """On plans whose caches have the next length with rows that TensorRT takes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield gpu_model(fp16_bundle, put_on_fake_gpu(fp16_bundle, monkeypatch, kind))


def test_fp16_embeddings_and_logits_are_the_cpus_within_the_budget(fp16_cpu: TroL, fp16_model: TroL) -> None:
    for found, expected in zip(conversation(fp16_model), conversation(fp16_cpu), strict=True):
        assert_close(found, expected, FP16_BUDGET)


def test_every_token_of_an_fp16_answer_is_the_cpus_or_as_good_within_the_budget(
    fp16_cpu: TroL, fp16_model: TroL
) -> None:
    embeds = fp16_cpu.session.encode(fp16_cpu.preprocess([PICTURE]))
    ids = np.array([[1, *[fp16_cpu.config.image_token_id] * embeds.shape[1], 5, 6, 7]])
    logits = fp16_cpu.session.prefill(ids, embeds)
    for token in fp16_model.generate_ids(ids, embeds, max_new_tokens=12, eos_token_id=[])[0]:
        assert logits.max() - logits[0, token] <= 2 * FP16_BUDGET * np.abs(logits).max()
        logits = fp16_cpu.session.decode(np.array([token]))


def test_rows_of_an_odd_length_can_be_filled_to_their_end(fp16_cpu: TroL, fp16_model: TroL) -> None:
    lengths = [ODD_MAX_SEQ - 1, 5, 100]
    mask = (np.arange(max(lengths)) >= max(lengths) - np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask, 9, 0)
    logits = []
    for one in (fp16_model, fp16_cpu):
        session = one.new_session()
        logits.append([session.prefill(ids, attention_mask=mask), session.decode(np.array([7, 8, 9]))])
        with pytest.raises(LimitError):
            session.decode(np.array([7, 8, 9]))
    for found, expected in zip(*logits, strict=True):
        assert_close(found, expected, FP16_BUDGET)


class UnroundedPlan:
    """Of decode, as if it was built for the odd length."""

    dtypes: ClassVar = {"past_key_values.0.key": np.dtype(np.float16)}

    def largest(self, name: str) -> tuple[int, ...]:
        return {"past_key_values.0.key": (3, 2, ODD_MAX_SEQ, 8)}[name]


def test_a_plan_whose_rows_tensorrt_does_not_take_is_refused_with_a_length_that_it_takes(
    bundle: Bundle, gpu: FakeGpu
) -> None:
    plans: Any = {"decode": UnroundedPlan()}
    with pytest.raises(EngineFileError) as refused:
        GpuBackend(gpu.device, plans, bundle.manifest.model, Limits(ODD_MAX_SEQ, MICRO_MAX_BATCH))
    assert str(refused.value) == (
        "the caches of the plans have rows of 20384 bytes, TensorRT takes them at multiples of 256; export the engine "
        "with --max-seq 640"
    )
