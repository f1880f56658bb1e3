"""Times one linear on this GPU with its weights as an input and inside the plan, and records which is better.

    python -m trol_engines.weight_probe tensorrt-rtx

Prints both times as JSON, or what went wrong: `trol-inspect --system --probe` started it and says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir

from trol_engines.plan_builder import build_plan
from trol_engines.plan_graph import as_bytes
from trol_engines.tensorrt_package import TARGETS, TensorRTPackage, import_tensorrt
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.cuda_device import CudaDevice, DeviceMemory
from trol_runtime.errors import TrolError
from trol_runtime.machine import describe_machine
from trol_runtime.plan_choice import Device, gpu_model, this_platform
from trol_runtime.target_support import known_sm, require_buildable, require_runnable
from trol_runtime.tensorrt_log import quiet_log
from trol_runtime.tensorrt_plan import Tensor, TensorRTPlan
from trol_runtime.weight_form import Probe, WeightForm, record_probe

NAME = "python -m trol_engines.weight_probe"
EXAMPLES = (("tensorrt", "what trol-inspect --system --probe does"),)

PRECISION = "fp16"
_DTYPE = np.dtype(np.float16)
# Twice 7B's w1, [out, in]: 235 MB, more than caches on GPUs hold, so that every run reads it from memory.
OUT_FEATURES, IN_FEATURES = 2 * 14_336, 4096
_ROUNDS, _RUNS = 21, 20
_X, _WEIGHT, _Y = "x", "weight", "y"


def main(argv: Sequence[str] | None) -> int:
    """Probe and record; returns the exit code."""
    parser = CommandParser(NAME, EXAMPLES)
    parser.add_argument("target", choices=TARGETS)
    target = parser.parse_args(argv).target
    try:
        machine = describe_machine()
        require_buildable(target, machine, precision=PRECISION)
        require_runnable(target, machine)
        package = import_tensorrt(target)
        here = Device(target, package.version, known_sm(machine), this_platform(), gpu_model(target, machine))
        found = probe(package, CudaDevice())
        record_probe(found, here, PRECISION)
    except TrolError as error:
        print(error)
        return error.exit_code
    print(json.dumps(asdict(found)))
    return 0


def probe(
    package: TensorRTPackage, device: CudaDevice, out_features: int = OUT_FEATURES, in_features: int = IN_FEATURES
) -> Probe:
    """Time y = x W^T both ways, in turns: x (1, in), W [out, in], fp16. Raises TrolError, LimitError."""
    linears = {form: _Linear(package, device, form, out_features, in_features) for form in get_args(WeightForm)}
    seconds: dict[WeightForm, list[float]] = {form: [] for form in linears}
    for _ in range(_ROUNDS):
        for form, linear in linears.items():
            seconds[form].append(linear.seconds())
    # The first round compiles kernels and is not like the others.
    found: Mapping[WeightForm, float] = {form: 1e6 * median(times[1:]) for form, times in seconds.items()}
    return Probe(shared_us=found["shared"], embedded_us=found["embedded"])


class _Linear:
    """A linear in one of the forms, with everything it needs on the device."""

    def __init__(
        self, package: TensorRTPackage, device: CudaDevice, form: WeightForm, out_features: int, in_features: int
    ) -> None:
        graph = linear_graph(form, out_features, in_features)
        built = build_plan(package, graph, {})
        trt: Any = package.trt
        runtime = trt.Runtime(quiet_log(trt))
        self._device = device
        self._plan = TensorRTPlan(trt, runtime, built.plan, f"the probe's plan with {form} weights", device)
        self._plan.lend_activations(device.allocate(max(self._plan.activation_bytes, 1), "activations"))
        shapes = {_X: (1, in_features), _WEIGHT: (out_features, in_features), _Y: (1, out_features)}
        names = [*self._plan.inputs, *self._plan.outputs]
        self._memory = {name: self._filled(shapes[name]) for name in names}
        self._plan.bind({name: Tensor(memory.address, shapes[name]) for name, memory in self._memory.items()})

    def seconds(self) -> float:
        """Of one run, when several follow each other."""
        self._device.synchronize()
        begin = time.perf_counter()
        for _ in range(_RUNS):
            self._plan.enqueue()
        self._device.synchronize()
        return (time.perf_counter() - begin) / _RUNS

    def _filled(self, shape: tuple[int, int]) -> DeviceMemory:
        nbytes = shape[0] * shape[1] * _DTYPE.itemsize
        memory = self._device.allocate(nbytes, "a probe")
        self._device.fill_zero(memory.address, nbytes)
        return memory


def linear_graph(form: WeightForm, out_features: int, in_features: int) -> bytes:
    """An ONNX model of one linear as the roles' graphs have it, its weight [out, in] an input or a constant."""
    x = _value(_X, 1, in_features)
    weight = _value(_WEIGHT, out_features, in_features)
    node = ir.node("Gemm", [x, weight], {"transB": 1}, name="linear")
    (y,) = node.outputs
    y.name, y.type, y.shape = _Y, x.type, ir.Shape([1, out_features])
    if form == "embedded":
        weight.const_value = ir.tensor(np.zeros((out_features, in_features), _DTYPE), name=_WEIGHT)
    graph = ir.Graph(
        [x] if form == "embedded" else [x, weight],
        [y],
        nodes=[node],
        initializers=[weight] if form == "embedded" else [],
        opset_imports={"": 17},
        name="linear",
    )
    model = ir.Model(graph, ir_version=8)
    onnx.checker.check_model(ir.to_proto(model))
    return as_bytes(model)


def _value(name: str, *shape: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape(shape))


if __name__ == "__main__":
    run_script(NAME, main)
