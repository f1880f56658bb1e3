"""The fake GPU is strict: names and shapes are the real packages', and what a GPU would not forgive is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import EngineOf

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

import tensorrt_rtx as trt
from cuda.bindings import runtime as cuda

from fake_gpu.cuda import FakeRuntime
from fake_gpu.engine import plans_of
from fake_gpu.memory import Fault, Memory
from fake_gpu.tensorrt import (
    _MAGIC,
    FakeContext,
    FakeEngine,
    FakeRuntimeCache,
    FakeRuntimeConfig,
    FakeTensorRT,
    FakeTensorRTRuntime,
)
from trol_runtime.bundle import Bundle
from trol_runtime.manifest import Opset

# What a fake has beside the real one's names, for tests to look at.
OWN = {"memory", "put", "pending", "launched_graphs", "capturable", "strategy", "taken", "logger"}


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (FakeEngine, trt.ICudaEngine),
        (FakeContext, trt.IExecutionContext),
        (FakeTensorRTRuntime, trt.Runtime),
        (FakeRuntimeConfig, trt.IRuntimeConfig),
        (FakeRuntimeCache, trt.IRuntimeCache),
        (FakeTensorRT, trt),
        (FakeRuntime, cuda),
    ],
    ids=lambda kind: getattr(kind, "__name__", ""),
)
def test_every_name_of_the_fake_is_one_of_the_real_package(fake: Any, real: Any) -> None:
    names = {name for name in vars(fake) if not name.startswith("_")} - OWN
    assert names
    assert not {name for name in names if not hasattr(real, name)}


def test_a_name_that_the_real_package_lacks_is_an_error() -> None:
    name_of_tomorrow, unknown = "IEngineOfTomorrow", "Refitter"
    with pytest.raises(AttributeError):
        getattr(FakeTensorRT(FakeRuntime()), name_of_tomorrow)
    with pytest.raises(NotImplementedError, match=r"the fake does not know tensorrt_rtx\.Refitter"):
        getattr(FakeTensorRT(FakeRuntime()), unknown)


def test_another_number_of_arguments_than_cuda_takes_is_an_error() -> None:
    with pytest.raises(AssertionError, match="cudaMemsetAsync takes 4 arguments, 3 are given"):
        FakeRuntime().cudaMemsetAsync(1, 0, 1)  # type: ignore[call-arg]


@pytest.mark.parametrize("opset", ["modern", "legacy"])
@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_inputs_and_outputs_are_those_of_the_network_that_tensorrt_makes_of_the_graph(
    micro_engine: EngineOf, arch: Any, opset: Opset
) -> None:
    for plan in plans_of(Bundle.open(micro_engine(arch, "fp16")), opset).values():
        fake = FakeEngine(FakeRuntime(), plan)
        header = int.from_bytes(plan[len(_MAGIC) : len(_MAGIC) + 8], "little")
        log = trt.Logger(trt.Logger.ERROR)
        network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert trt.OnnxParser(network, log).parse(plan[len(_MAGIC) + 8 + header :])
        inputs = [network.get_input(number) for number in range(network.num_inputs)]
        outputs = [network.get_output(number) for number in range(network.num_outputs)]
        assert [tensor.name for tensor in inputs] == list(fake.inputs)
        assert [tensor.name for tensor in outputs] == list(fake.outputs)
        for tensor in (*inputs, *outputs):
            assert tensor.dtype == fake.get_tensor_dtype(tensor.name)
        for tensor in inputs:
            static = static_shape(fake.inputs[tensor.name])
            assert tuple(tensor.shape) == static
            assert (-1 in static) == (tensor.name in fake.ranges)
        for tensor in outputs:
            if tensor.name != "logits":  # of a prompt they are one row, which TensorRT does not see
                assert tuple(tensor.shape) == static_shape(fake.outputs[tensor.name])


def static_shape(value: Any) -> tuple[int, ...]:
    """With -1 for an axis that has no constant size, as TensorRT tells shapes."""
    return tuple(axis if isinstance(axis, int) else -1 for axis in value.shape)


def test_device_memory_is_poisoned_and_kept_to_its_ends() -> None:
    memory = Memory(total=1000)
    address = memory.allocate(512)
    assert address is not None
    assert address % 256 == 0
    assert np.isnan(memory.view(address, 512).view(np.float16)).all()
    with pytest.raises(Fault, match=r"512 bytes at .* end behind their allocation"):
        memory.view(address + 1, 512)
    with pytest.raises(Fault, match="is no device memory"):
        memory.view(8, 1)
    assert memory.allocate(512) is None  # of 1000 bytes
    memory.free(address)
    with pytest.raises(Fault, match="use after free"):
        memory.view(address, 1)
    with pytest.raises(Fault, match="freed twice"):
        memory.free(address)


def test_what_comes_from_the_device_is_there_when_it_was_waited_for() -> None:
    fake = FakeRuntime()
    _, stream = fake.cudaStreamCreate()
    _, address = fake.cudaMalloc(16)
    kinds = cuda.cudaMemcpyKind
    sent, received = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    fake.cudaMemcpyAsync(address, sent.ctypes.data, 16, kinds.cudaMemcpyHostToDevice, stream)
    sent[:] = 9  # staged already
    fake.cudaMemcpyAsync(received.ctypes.data, address, 16, kinds.cudaMemcpyDeviceToHost, stream)
    assert np.isnan(received).all()
    fake.cudaStreamSynchronize(stream)
    assert received.tolist() == [0, 1, 2, 3]
