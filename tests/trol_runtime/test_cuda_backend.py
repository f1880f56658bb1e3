"""The CUDA backend: the CPU's answers from the CPU's graphs, caches on the device, and never the CPU in silence.

tests/fake_gpu keeps what CUDA and ONNX Runtime's CUDA provider ask of their callers, and computes on the CPU. Not run
on a GPU yet.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from conftest import EngineOf
from recorded_machines import recorded
from small_engine import write_small_engine
from small_prompts import assert_close, picture, picture_file

pytest.importorskip("tensorrt_rtx", reason="the fake GPU has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake GPU has the names of cuda.bindings")

from fake_gpu.cuda import FakeRuntime
from fake_gpu.engine import FakeGpu, gpu_model, put_on_fake_cuda
from fake_gpu.memory import Fault
from fake_gpu.onnxruntime import FakeBinding, FakeOnnxRuntime, FakeSession
from trol_runtime import TroL, cuda_backend, cuda_device, machine
from trol_runtime.backends import open_backend
from trol_runtime.bundle import Bundle
from trol_runtime.cuda_backend import CudaBackend
from trol_runtime.errors import EngineFileError, LimitError, MissingExtraError, TrolError, UsageError
from trol_runtime.memory_need import fp32_weight_bytes
from trol_runtime.run_command_line import main as trol_run

PICTURE = picture(40, 40)
QUESTION = "What is in the picture?"
IDS = np.array([[1, 5, 9, 33, 4]])


@pytest.fixture(scope="module", params=["internlm2", "phi3"])
def bundle(request: pytest.FixtureRequest, micro_engine: EngineOf) -> Bundle:
    return Bundle.open(micro_engine(request.param))


@pytest.fixture(scope="module")
def one_bundle(micro_engine: EngineOf) -> Bundle:
    """For what no architecture changes."""
    return Bundle.open(micro_engine("internlm2"))


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> TroL:
    return TroL(bundle)


@pytest.fixture(scope="module")
def gpu(bundle: Bundle) -> Iterator[FakeGpu]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield put_on_fake_cuda(bundle, monkeypatch)


@pytest.fixture(scope="module")
def model(bundle: Bundle, gpu: FakeGpu) -> TroL:
    return gpu_model(bundle, gpu)


@pytest.fixture
def gpu_pc(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """A PC with a GPU and the extra `gpu`, as far as this process can tell."""
    cuda = FakeRuntime()
    monkeypatch.setattr(machine, "describe_machine", lambda: recorded("rtx_4090"))
    monkeypatch.setattr(cuda_device, "cuda_runtime", lambda: cuda)
    monkeypatch.setattr(cuda_backend, "CDLL", lambda library: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime(cuda))
    return cuda


# The CPU's answers


def greedy(model: TroL) -> str:
    return model.generate(QUESTION, [PICTURE], max_new_tokens=12)


def beams(model: TroL) -> str:
    return model.generate(QUESTION, [PICTURE], max_new_tokens=8, num_beams=3)


def rows_of_different_lengths(model: TroL) -> list[list[int]]:
    ids = np.array([[0, 0, 5, 9, 33], [1, 7, 3, 4, 44], [0, 0, 0, 0, 8]])
    return model.generate_ids(ids, attention_mask=(ids > 0).astype(np.int64), max_new_tokens=6).tolist()


def chat(model: TroL) -> list[str]:
    """Its second turn goes on behind the first, which the cache keeps."""
    talk = model.chat(max_new_tokens=5)
    return ["".join(talk.ask(QUESTION, [PICTURE])), "".join(talk.ask("And now?"))]


@pytest.mark.parametrize("say", [greedy, beams, rows_of_different_lengths, chat])
def test_answers_are_the_cpus(cpu: TroL, model: TroL, say: Callable[[TroL], Any]) -> None:
    assert say(model) == say(cpu)


def pictures(model: TroL) -> list[np.ndarray]:
    return [model.session.encode(model.preprocess([PICTURE, PICTURE]))]


def prefill_and_decode(model: TroL) -> list[np.ndarray]:
    return [model.session.prefill(IDS), *(model.session.decode(np.array([token])) for token in (7, 8, 9))]


def chunks(model: TroL) -> list[np.ndarray]:
    return [model.new_session(prefill_chunk=16).prefill(np.arange(5, 45)[None])]


def a_fork(model: TroL) -> list[np.ndarray]:
    session = model.new_session(keep_prefix=True)
    session.prefill(IDS)
    fork = session.fork()
    return [session.decode(np.array([7])), fork.decode(np.array([8])), session.extend(np.array([[3]]))]


def two_sessions_in_turns(model: TroL) -> list[np.ndarray]:
    sessions = [model.new_session(), model.new_session()]
    logits = [session.prefill(ids) for session, ids in zip(sessions, (IDS, IDS[:, :3]), strict=True)]
    return logits + [session.decode(np.array([token])) for token in (7, 8, 9) for session in sessions]


@pytest.mark.parametrize("compute", [pictures, prefill_and_decode, chunks, a_fork, two_sessions_in_turns])
def test_embeddings_and_logits_are_the_cpus(
    cpu: TroL, model: TroL, compute: Callable[[TroL], list[np.ndarray]]
) -> None:
    for found, expected in zip(compute(model), compute(cpu), strict=True):
        assert_close(found, expected)


def test_weights_in_fp16_are_computed_with_in_fp32_as_on_the_cpu(
    micro_engine: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(micro_engine("internlm2", "fp16"))
    model = gpu_model(bundle, put_on_fake_cuda(bundle, monkeypatch))
    assert greedy(model) == greedy(TroL(bundle))


# Memory and order on the device


def test_a_cache_stays_where_it_is_and_is_written_there(model: TroL, gpu: FakeGpu) -> None:
    session = model.new_session()
    session.prefill(IDS)
    keys = session._cache.first_pass[0]
    assert written_tokens(gpu, keys) == IDS.size
    session.decode(np.array([7]))
    assert session._cache.first_pass[0] == keys
    assert written_tokens(gpu, keys) == IDS.size + 1


def written_tokens(gpu: FakeGpu, keys: Any) -> int:
    rows, heads, capacity, width = keys.shape
    values = gpu.cuda.memory.view(keys.address, 4 * rows * heads * capacity * width).view(np.float32)
    return int(values.reshape(keys.shape).any(axis=(0, 1, 3)).sum())


def test_a_session_that_begins_anew_takes_no_further_memory(model: TroL, gpu: FakeGpu) -> None:
    model.session.prefill(IDS)
    before = gpu.cuda.memory.in_use
    for _ in range(3):
        model.session.prefill(IDS)
    assert gpu.cuda.memory.in_use == before


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        ("trol_runtime.cuda_device.CudaDevice.synchronize", "work on its caches is pending on another"),
        ("fake_gpu.onnxruntime.FakeBinding.synchronize_inputs", "its inputs are still being copied"),
    ],
)
def test_what_a_run_does_not_wait_for_is_found(
    one_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, bug: str, found: str
) -> None:
    model = gpu_model(one_bundle, put_on_fake_cuda(one_bundle, monkeypatch))
    monkeypatch.setattr(bug, lambda self: None)
    with pytest.raises(EngineFileError, match=found):
        model.session.prefill(IDS)


def test_products_are_not_rounded_to_tf32(gpu: FakeGpu) -> None:
    assert isinstance(gpu.backend, CudaBackend)
    for session in (gpu.backend._language, gpu.backend._vision):
        assert isinstance(session, FakeSession)
        assert session.settings["use_tf32"] == "0"


def test_weights_that_do_not_fit_are_refused_before_they_are_copied(
    micro_engine: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(micro_engine("internlm2", "fp16"))
    stored = sum(tensor.nbytes for tensor in bundle.manifest.tensors.values())
    assert stored < fp32_weight_bytes(bundle.manifest) < 2 * stored  # all are widened but the token table
    with pytest.raises(LimitError) as refused:
        put_on_fake_cuda(bundle, monkeypatch, total_bytes=stored)
    assert str(refused.value).startswith("the GPU has no ")
    assert " for weights in fp32, in which --backend cuda computes: " in str(refused.value)
    assert str(refused.value).endswith(
        " are free; close what else uses it, or take --backend tensorrt-rtx, which keeps weights as they are stored"
    )


# Nodes on the CPU


def test_nodes_that_run_on_the_cpu_are_listed_in_one_warning(
    one_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match="run on the CPU") as warned:
        put_on_fake_cuda(one_bundle, monkeypatch, on_cpu=["TensorScatter", "If", "Gelu"])
    assert [str(warning.message) for warning in warned] == [
        "19 of 562 nodes run on the CPU, as ONNX Runtime placed them (16 TensorScatter, 2 If, 1 Gelu); what they share "
        "with the GPU is copied there or back in every step"
    ]


def test_without_such_nodes_there_is_no_warning(one_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        put_on_fake_cuda(one_bundle, monkeypatch)


# What is missing


def test_the_package_for_the_cpu_is_not_taken_for_the_one_with_cuda(one_bundle: Bundle) -> None:
    with pytest.raises(MissingExtraError) as refused:
        CudaBackend(one_bundle)
    assert str(refused.value) == (
        f"--backend cuda needs onnxruntime-gpu, found onnxruntime {onnxruntime.__version__}, which is for the CPU; "
        "run: pip uninstall -y onnxruntime && pip install 'trol-export[gpu]'"
    )


def test_missing_libraries_of_cuda_are_named_and_nothing_is_printed(
    one_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingExtraError) as refused:
        put_on_fake_cuda(one_bundle, monkeypatch, missing=["Failed to load libcublas.so.13", "Please follow the guide"])
    assert str(refused.value) == (
        f"onnxruntime-gpu {onnxruntime.__version__} needs the libraries of CUDA 13.0 and cuDNN 9, found not all "
        "(Failed to load libcublas.so.13 Please follow the guide); run: pip install 'trol-export[gpu]'"
    )
    assert capsys.readouterr() == ("", "")


def test_a_missing_cudnn_is_found_before_a_picture_needs_it(
    one_bundle: Bundle, gpu_pc: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_file(library: str) -> None:
        raise OSError(f"{library}: cannot open shared object file")

    monkeypatch.setattr(cuda_backend, "CDLL", no_such_file)
    with pytest.raises(MissingExtraError, match=r"\(libcudnn\.so\.9: cannot open shared object file\); run: pip"):
        CudaBackend(one_bundle)


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ({"starts": False}, "of its providers only CPUExecutionProvider does"),
        (
            {"failure": "CUDA failure 35: the driver is too old\nand more"},
            "CUDA failure 35: the driver is too old and more",
        ),
    ],
    ids=["in silence", "with a failure"],
)
def test_a_provider_that_does_not_start_is_an_error_and_not_the_cpu(
    one_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, provider: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TrolError) as refused:
        put_on_fake_cuda(one_bundle, monkeypatch, **provider)
    assert str(refused.value) == (
        f"onnxruntime-gpu {onnxruntime.__version__} does not start on this GPU ({reason}); it needs a driver for CUDA "
        "13.0 or newer, what is here says: trol-inspect --system"
    )


def test_a_graph_that_it_refuses_is_the_engines_fault(one_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineFileError, match=r"cannot load a graph \(no graph\); upgrade onnxruntime or export the"):
        put_on_fake_cuda(one_bundle, monkeypatch, failure="no graph")


def test_an_engine_without_the_graphs_for_the_cpu_says_how_to_get_them(tmp_path: Path) -> None:
    engine = write_small_engine(tmp_path / "engine.plan")
    with pytest.raises(EngineFileError, match=r"has no CPU plan .*; export it with: trol-export --target cpu$"):
        CudaBackend(Bundle.open(engine))


def test_a_machine_without_a_gpu_is_told_so(one_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "describe_machine", lambda: recorded("no_gpu"))
    with pytest.raises(TrolError) as refused:
        open_backend("cuda", one_bundle)
    assert str(refused.value) == "cuda needs an NVIDIA GPU, none to be seen here; run the target cpu"


# The command


def test_the_command_answers_with_it(
    one_bundle: Bundle, gpu_pc: FakeRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = [str(one_bundle.path), "--image", str(picture_file(tmp_path)), "--max-new-tokens", "5"]
    assert trol_run([*question, "--backend", "cuda"]) == 0
    said = capsys.readouterr().out
    assert gpu_pc._made_streams == 1  # on the GPU, and not on the CPU instead
    assert gpu_pc.memory.in_use == 0
    with pytest.MonkeyPatch.context() as real:
        real.setitem(sys.modules, "onnxruntime", onnxruntime)
        assert trol_run(question) == 0
    assert said == capsys.readouterr().out


def test_it_has_no_plans_to_trust(one_bundle: Bundle) -> None:
    with pytest.raises(UsageError) as refused:
        trol_run([str(one_bundle.path), "--prompt", "Who?", "--backend", "cuda", "--trust-plans"])
    assert str(refused.value) == (
        "--trust-plans is for plans of TensorRT, --backend cuda runs none; name another, or leave it out"
    )


# The fake


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (FakeOnnxRuntime, onnxruntime),
        (FakeSession, onnxruntime.InferenceSession),
        (FakeBinding, onnxruntime.IOBinding),
    ],
)
def test_every_name_of_the_fake_is_one_of_the_installed_package(fake: Any, real: Any) -> None:
    names = {name for name in vars(fake) if not name.startswith("_")}
    assert names
    assert not {name for name in names if not hasattr(real, name)}


def test_memory_that_is_not_the_devices_is_found(gpu: FakeGpu) -> None:
    host = np.zeros((1, 1, 1, 4), np.float32)
    assert isinstance(gpu.backend, CudaBackend)
    binding = gpu.backend._language.io_binding()
    with pytest.raises(Fault, match="is no device memory"):
        binding.bind_input("past_key_values.0.key", "cuda", 0, np.float32, host.shape, host.ctypes.data)
    with pytest.raises(TypeError, match="too many positional arguments"):
        binding.bind_input("past_key_values.0.key", "cuda", 0, np.float32, host.shape, host.ctypes.data, 1)
