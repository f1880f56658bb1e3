"""What the layers of a finished plan put out, from TensorRT's engine inspector: what was built, beside what was asked.

A network says in which types its layers compute, and of a strongly typed one nothing else is built; the inspector shows
it of the fused layers that run. It needs the plan on a GPU. Not run on a GPU yet: read are the fields that NVIDIA
documents (TensorRT 10.16, "Engine Inspector"; TensorRT 11, "Migrating IEngineInspector Usage from TensorRT 10.x").
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from trol_runtime.tensorrt_log import quiet_log

# Up to TensorRT 10 type and layout are one text, "Row major linear FP16 format" or "Half"; from 11 on two.
_TYPE_FIELDS = ("DataType", "Format/Datatype")
_TYPE_NAMES = {
    "fp32": "fp32|float|float32",
    "fp16": "fp16|half|float16",
    "bf16": "bf16|bfloat16",
    "fp8": "fp8|fp8e4m3",
    "int8": "int8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
OTHER = "other"  # what has no type of these: "N/A due to dynamic shapes"


def built_types(trt: Any, plan: bytes) -> dict[str, int]:
    """How many layers of a plan have which type as their first output.

    Empty where the plan is for other GPUs than this one, there is no memory for it, or the inspector tells no types.
    """
    try:
        types = _inspected(trt, plan)
    except Exception:  # whatever the library raises: no plan is worse for what is not known of it
        return {}
    return types if types.keys() - {OTHER} else {}


def _inspected(trt: Any, plan: bytes) -> dict[str, int]:
    engine = trt.Runtime(quiet_log(trt)).deserialize_cuda_engine(plan)
    if engine is None:
        return {}
    context = _typical_context(trt, engine)
    if context is None:
        return {}
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return types_of(json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)))


def _typical_context(trt: Any, engine: Any) -> Any:
    """A context with the shapes the plan is tuned for: without any, types of dynamic tensors are not told.

    It never runs, so that activations get no memory, which by default is that of the profile's largest shapes
    (ExecutionContextAllocationStrategy). None where TensorRT makes no context.
    """
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        return None
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
    return context


def types_of(engine: Mapping[str, Any]) -> dict[str, int]:
    """The same of the inspector's JSON, by name of the type."""
    layers = [layer for layer in engine.get("Layers", ()) if isinstance(layer, dict)]  # names alone say nothing
    return dict(sorted(Counter(_type_of(layer) for layer in layers).items()))


def _type_of(layer: Mapping[str, Any]) -> str:
    (output, *_) = layer.get("Outputs") or [{}]
    text = next((str(output[field]) for field in _TYPE_FIELDS if field in output), "")
    found = (name for name, words in _TYPE_NAMES.items() if re.search(rf"\b({words})\b", text, re.IGNORECASE))
    return next(found, OTHER)
