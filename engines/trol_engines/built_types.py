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
    """How many layers of a plan have which type as their first output; none where it is for other GPUs than this."""
    engine = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).deserialize_cuda_engine(plan)
    if engine is None:
        return {}
    described = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return types_of(json.loads(described))


def types_of(engine: Mapping[str, Any]) -> dict[str, int]:
    """The same of the inspector's JSON, by name of the type."""
    layers = [layer for layer in engine.get("Layers", ()) if isinstance(layer, dict)]  # names alone say nothing
    return dict(sorted(Counter(_type_of(layer) for layer in layers).items()))


def _type_of(layer: Mapping[str, Any]) -> str:
    (output, *_) = layer.get("Outputs") or [{}]
    text = next((str(output[field]) for field in _TYPE_FIELDS if field in output), "")
    found = (name for name, words in _TYPE_NAMES.items() if re.search(rf"\b({words})\b", text, re.IGNORECASE))
    return next(found, OTHER)
