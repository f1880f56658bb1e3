"""The smallest plan there is, y = x + x of 1 to 4 rows, with room for what it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from fake_gpu.tensorrt import fake_plan
from trol_runtime.cuda_device import CudaDevice
from trol_runtime.tensorrt_plan import Tensor, TensorRTPlan, load_plans

MOST_ROWS, COLUMNS = 4, 8


def doubling_plan(user_allocation: bool = True) -> bytes:
    """user_allocation: as in `fake_plan`"""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", COLUMNS]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ranges = {"x": [(1, COLUMNS), (1, COLUMNS), (MOST_ROWS, COLUMNS)]}
    return fake_plan(model.SerializeToString(), ranges, user_allocation)


class Doubling:
    """The plan, loaded as the one of a role."""

    def __init__(self, trt: Any, device: CudaDevice, role: str = "decode", data: bytes | None = None) -> None:
        self.plan: TensorRTPlan = load_plans(trt, {role: data or doubling_plan()}, device, None)[role]
        self._device = device
        self._x, self._y = (device.allocate(MOST_ROWS * COLUMNS * 4, "a test") for _ in "xy")

    def tensors(self, rows: int) -> Mapping[str, Tensor]:
        """What it is bound to: x and y, (rows, 8) fp32 each."""
        shape = (rows, COLUMNS)
        return {"x": Tensor(self._x.address, shape), "y": Tensor(self._y.address, shape)}

    def upload(self, value: float, rows: int) -> None:
        """Fill x."""
        values = np.full((rows, COLUMNS), value, np.float32)
        self._device.upload(self._x.address, values)
        self._device.synchronize()

    def result(self, rows: int) -> float:
        """The number that stands everywhere in y."""
        values = np.empty((rows, COLUMNS), np.float32)
        self._device.download(values, self._y.address)
        assert values.min() == values.max()
        return float(values[0, 0])

    def run(self, value: float, rows: int = 1) -> float:
        """One run with `value` everywhere in x: what stands in y."""
        self.upload(value, rows)
        self.plan.bind(self.tensors(rows))
        self.plan.enqueue()
        return self.result(rows)
