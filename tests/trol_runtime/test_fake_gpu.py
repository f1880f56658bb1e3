"""The fake GPU is strict: names and shapes are the real packages', and what a GPU would not forgive is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from conftest import EngineOf

pytest.importorskip("tensorrt_rtx", reason="the fake has the names of tensorrt_rtx: extra rtx")
pytest.importorskip("cuda.bindings", reason="the fake has the names of cuda.bindings")

import tensorrt_rtx as trt
from cuda.bindings import runtime as cuda

from fake_gpu.cuda import FakeRuntime
from fake_gpu.declared import declared_by, signatures
from fake_gpu.doubling import COLUMNS, MOST_ROWS, doubling_plan
from fake_gpu.engine import plans_of
from fake_gpu.memory import Fault, Memory
from fake_gpu.rtx import ONLY_RTX, FakeRuntimeCache, FakeRuntimeConfig
from fake_gpu.tensorrt import (
    _MAGIC,
    FakeContext,
    FakeEngine,
    FakeRtxContext,
    FakeRtxEngine,
    FakeTensorRT,
    FakeTensorRTRuntime,
    fake_plan,
)
from trol_runtime.bundle import Bundle
from trol_runtime.manifest import Opset

# What a fake has beside the real one's names, for tests to look at.
OWN = {"memory", "put", "pending", "launched_graphs", "capturable", "taken", "logger"}


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (FakeEngine, trt.ICudaEngine),
        (FakeRtxEngine, trt.ICudaEngine),
        (FakeContext, trt.IExecutionContext),
        (FakeRtxContext, trt.IExecutionContext),
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


def test_every_name_that_only_rtx_has_is_one_that_it_has() -> None:
    """The list is written by hand, from NVIDIA's pages: a name that changed would hide nothing."""
    owners = {owner: getattr(trt, owner) if owner else trt for owner in ONLY_RTX}
    assert not [
        (owner, name) for owner, names in ONLY_RTX.items() for name in names if not hasattr(owners[owner], name)
    ]


@pytest.mark.parametrize(
    ("owner", "fake"),
    [("ICudaEngine", FakeEngine), ("IExecutionContext", FakeContext), ("Runtime", FakeTensorRTRuntime)],
)
def test_full_tensorrt_has_no_name_that_only_rtx_has(owner: str, fake: type) -> None:
    assert not [name for name in ONLY_RTX[owner] if hasattr(fake, name)]


def test_a_module_of_full_tensorrt_has_no_name_that_only_rtx_has() -> None:
    full, rtx = FakeTensorRT(FakeRuntime(), "tensorrt"), FakeTensorRT(FakeRuntime(), "tensorrt_rtx")
    assert (full.__name__, rtx.__name__) == ("tensorrt", "tensorrt_rtx")
    assert rtx.CudaGraphStrategy is trt.CudaGraphStrategy
    with pytest.raises(AttributeError, match="tensorrt has no CudaGraphStrategy"):
        full.CudaGraphStrategy  # noqa: B018


def test_a_name_that_the_real_package_lacks_is_an_error() -> None:
    name_of_tomorrow, unknown = "IEngineOfTomorrow", "Refitter"
    with pytest.raises(AttributeError):
        getattr(FakeTensorRT(FakeRuntime()), name_of_tomorrow)
    with pytest.raises(NotImplementedError, match=r"the fake does not know tensorrt_rtx\.Refitter"):
        getattr(FakeTensorRT(FakeRuntime()), unknown)


def test_a_setting_that_the_real_configuration_lacks_is_an_error() -> None:
    with pytest.raises(AttributeError, match="cuda_graphs"):
        FakeRuntimeConfig().cuda_graphs = True


def test_another_number_of_arguments_than_cuda_takes_is_an_error() -> None:
    with pytest.raises(AssertionError, match="cudaMemsetAsync takes 4 arguments, 3 are given"):
        FakeRuntime().cudaMemsetAsync(1, 0, 1)  # type: ignore[call-arg]


def test_another_number_of_arguments_than_tensorrt_takes_is_an_error(engine: Any) -> None:
    context = engine.create_execution_context(USER_MANAGED)
    with pytest.raises(TypeError, match=r"IExecutionContext\.set_device_memory takes \(self, memory, size\), not"):
        context.set_device_memory(256)
    with pytest.raises(TypeError, match=r"ICudaEngine\.get_tensor_profile_shape takes \(self, name, profile_index\)"):
        engine.get_tensor_profile_shape("x")


def test_an_argument_by_another_name_than_tensorrts_is_an_error(engine: Any) -> None:
    with pytest.raises(TypeError, match=r"ICudaEngine\.get_tensor_name takes \(self, index\)"):
        engine.get_tensor_name(number=0)


def test_arguments_are_read_from_what_the_real_package_says_of_each_overload() -> None:
    """As pybind11 writes them: "set_runtime_cache(self: ..., cache: nvinfer1::IRuntimeCache = None) -> bool"."""
    assert [str(one) for one in signatures(trt.IRuntimeConfig.set_runtime_cache)] == ["(self, cache=None)"]
    assert [str(one) for one in signatures(trt.ICudaEngine.create_execution_context)] == [
        "(self, strategy=None)",
        "(self, runtime_config=None)",
    ]
    assert {str(one) for one in signatures(trt.IExecutionContext.set_input_shape)} == {"(self, name, shape)"}


def test_a_stand_in_for_a_method_that_is_not_there_is_an_error() -> None:
    class OfTomorrow:
        def set_every_address(self) -> None: ...

    with pytest.raises(AttributeError, match="set_every_address"):
        declared_by(trt.IExecutionContext)(OfTomorrow)


USER_MANAGED = trt.ExecutionContextAllocationStrategy.USER_MANAGED


@pytest.fixture
def device() -> FakeRuntime:
    fake = FakeRuntime()
    fake.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)
    return fake


@pytest.fixture
def engine(device: FakeRuntime) -> FakeEngine:
    return FakeEngine(device, doubling_plan())


STREAM = 1
ROW = COLUMNS * 4  # bytes


class Run:
    """A context of the plan y = x + x, ready to run; each test leaves something out or does it wrong."""

    def __init__(self, context: FakeContext, device: FakeRuntime) -> None:
        self.context, self._device = context, device
        context.set_device_memory(self.memory(FakeEngine.device_memory_size_v2), FakeEngine.device_memory_size_v2)
        assert context.set_input_shape("x", (1, COLUMNS))
        for name in "xy":
            assert context.set_tensor_address(name, self.memory(ROW))

    def memory(self, nbytes: int) -> int:
        _, address = self._device.cudaMalloc(nbytes)
        self._device.cudaMemsetAsync(address, 0, nbytes, STREAM)
        return address

    def done(self) -> None:
        assert self.context.execute_async_v3(STREAM)
        self._device.cudaStreamSynchronize(STREAM)

    def captured(self) -> int:
        """The graph of a run."""
        self._device.cudaStreamBeginCapture(STREAM, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            self.context.execute_async_v3(STREAM)
        finally:
            _, graph = self._device.cudaStreamEndCapture(STREAM)
        return self._device.cudaGraphInstantiate(graph, 0)[1]

    def launch(self, graph: int) -> None:
        self._device.cudaGraphLaunch(graph, STREAM)
        self._device.cudaStreamSynchronize(STREAM)


@pytest.fixture
def run(engine: FakeEngine, device: FakeRuntime) -> Run:
    return Run(engine.create_execution_context(USER_MANAGED), device)


def rtx_run(device: FakeRuntime, config: FakeRuntimeConfig, user_allocation: bool = True) -> Run:
    config.set_execution_context_allocation_strategy(USER_MANAGED)
    engine = FakeRtxEngine(device, doubling_plan(user_allocation))
    return Run(engine.create_execution_context(config), device)


@pytest.fixture
def config() -> FakeRuntimeConfig:
    config = FakeRuntimeConfig()
    config.set_runtime_cache(config.create_runtime_cache())
    return config


def test_a_run_with_all_it_needs_is_done(run: Run) -> None:
    run.done()


def test_a_run_without_an_address_is_found(run: Run) -> None:
    del run.context._addresses["y"]
    with pytest.raises(Fault, match=r"a run without addresses of \['y'\]"):
        run.done()


def test_a_run_without_a_shape_is_found(run: Run) -> None:
    run.context._shapes.clear()
    assert run.context.infer_shapes() == ["x"]
    with pytest.raises(Fault, match=r"or shapes of \['x'\]"):
        run.done()


def test_a_run_without_memory_for_activations_is_found(run: Run) -> None:
    run.context._activations = None
    with pytest.raises(Fault, match="a run without memory for activations"):
        run.done()


@pytest.mark.parametrize(
    "shape", [(0, COLUMNS), (MOST_ROWS + 1, COLUMNS), (1, COLUMNS + 1), (COLUMNS,), (1, 1, COLUMNS)]
)
def test_a_shape_outside_the_profile_is_refused(run: Run, shape: tuple[int, ...]) -> None:
    assert not run.context.set_input_shape("x", shape)


def test_names_that_the_plan_does_not_have_are_refused(run: Run) -> None:
    assert not run.context.set_input_shape("z", (1, COLUMNS))
    assert not run.context.set_input_shape("y", (1, COLUMNS))  # an output has the shape that follows
    assert not run.context.set_tensor_address("z", run.memory(ROW))


def test_an_address_between_two_multiples_of_256_is_found(run: Run) -> None:
    with pytest.raises(Fault, match=r"x lies at 0x.*, no multiple of 256"):
        run.context.set_tensor_address("x", run.memory(1024) + 128)


@pytest.mark.parametrize("name", ["x", "y"])
def test_memory_of_a_smaller_type_or_shape_is_found(run: Run, name: str) -> None:
    """fp16 where the plan takes fp32: TensorRT is given addresses, the type is the plan's."""
    run.context.set_tensor_address(name, run.memory(ROW // 2))
    with pytest.raises(Fault, match=rf"{ROW} bytes at 0x.* end behind their allocation"):
        run.done()


def test_an_address_of_the_host_is_found(run: Run) -> None:
    run.context.set_tensor_address("x", 256)
    with pytest.raises(Fault, match="0x100 is no device memory"):
        run.done()


def test_what_is_no_truth_value_is_found(device: FakeRuntime) -> None:
    """A mask of another type, or one that nobody wrote."""
    mask = helper.make_tensor_value_info("mask", TensorProto.BOOL, [4])
    out = helper.make_tensor_value_info("out", TensorProto.BOOL, [4])
    graph = helper.make_graph([helper.make_node("Not", ["mask"], ["out"])], "not", [mask], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    context = FakeEngine(device, fake_plan(model.SerializeToString(), {})).create_execution_context(USER_MANAGED)
    _, activations = device.cudaMalloc(FakeEngine.device_memory_size_v2)
    context.set_device_memory(activations, FakeEngine.device_memory_size_v2)
    for name in ("mask", "out"):
        context.set_tensor_address(name, device.cudaMalloc(4)[1])
    context.execute_async_v3(STREAM)
    with pytest.raises(Fault, match="mask holds what is no truth value"):
        device.cudaStreamSynchronize(STREAM)


def test_a_capture_before_the_first_run_in_a_shape_is_found(run: Run) -> None:
    with pytest.raises(Fault, match="a capture before the context ran once with its shapes and addresses"):
        run.captured()
    run.done()
    run.launch(run.captured())


def test_a_graph_of_a_context_that_was_changed_is_found(run: Run) -> None:
    run.done()
    graph = run.captured()
    run.context.set_tensor_address("y", run.memory(ROW))
    with pytest.raises(Fault, match="a graph of a context that was changed since"):
        run.launch(graph)


def test_a_capture_of_rtx_that_keeps_slow_kernels_is_found(device: FakeRuntime, config: FakeRuntimeConfig) -> None:
    run = rtx_run(device, config)
    run.done()
    with pytest.raises(Fault, match="a capture that keeps fallback kernels for good"):
        run.captured()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    run.launch(run.captured())


def test_a_capture_of_a_plan_of_rtx_that_may_allocate_is_found(device: FakeRuntime, config: FakeRuntimeConfig) -> None:
    run = rtx_run(device, config, user_allocation=False)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    run.done()
    assert not run.context.is_stream_capturable(STREAM)  # type: ignore[attr-defined]
    with pytest.raises(Fault, match="a capture of a plan built without REQUIRE_USER_ALLOCATION"):
        run.captured()


@pytest.mark.parametrize("gone", ["configuration", "runtime cache"])
def test_a_context_of_rtx_whose_configuration_or_cache_is_gone_is_found(device: FakeRuntime, gone: str) -> None:
    config = FakeRuntimeConfig()
    config.set_runtime_cache(config.create_runtime_cache())
    run = rtx_run(device, config)
    run.done()
    if gone == "configuration":
        del config
    else:
        config._cache = None
    with pytest.raises(Fault, match="a run of a context whose configuration or runtime cache is gone"):
        run.done()


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


def test_what_comes_from_the_device_is_there_when_it_was_waited_for(device: FakeRuntime) -> None:
    _, address = device.cudaMalloc(16)
    kinds = cuda.cudaMemcpyKind
    sent, received = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    device.cudaMemcpyAsync(address, sent.ctypes.data, 16, kinds.cudaMemcpyHostToDevice, STREAM)
    device.cudaMemcpyAsync(received.ctypes.data, address, 16, kinds.cudaMemcpyDeviceToHost, STREAM)
    assert np.isnan(received).all()
    device.cudaStreamSynchronize(STREAM)
    assert received.tolist() == [0, 1, 2, 3]
