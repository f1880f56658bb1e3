"""Trace a role on the meta device: a torch program with symbolic axes, without memory for weights or activations."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from trol_graphs.graph_io import Port, Role, graph_inputs
from trol_graphs.model import TroLModel
from trol_graphs.roles import Decode, Extend, Prefill, Vision
from trol_runtime.axis_names import BATCH, CACHE, CROPS, IMAGE_TOKENS, SEQ
from trol_runtime.cache_names import PAST, PAST_SECOND_PASS

# Sizes that stand for the symbolic axes while tracing: all different and none 0 or 1, so that no two axes are confused
# and none is taken for a constant.
_TRACED_SIZE = {CROPS: 3, SEQ: 7, BATCH: 5, IMAGE_TOKENS: 11, CACHE: 13}
_SMALLEST = {CROPS: 1, SEQ: 2, BATCH: 1, IMAGE_TOKENS: 1, CACHE: 2}
_DTYPE = {"compute": torch.float32, "float32": torch.float32, "int64": torch.int64, "bool": torch.bool}
_MODULE = {"vision": Vision, "prefill": Prefill, "decode": Decode, "extend": Extend}


def trace(model: TroLModel, role: Role) -> ExportedProgram:
    """The role's graph of torch operators, its caches flattened behind the other inputs."""
    dims = {name: Dim(name, min=smallest) for name, smallest in _SMALLEST.items()}
    ports = graph_inputs(role, model.config)
    tensors = [_meta_tensor(port) for port in ports]
    dynamic = [{axis: dims[size] for axis, size in enumerate(port.shape) if isinstance(size, str)} for port in ports]
    return torch.export.export(
        _MODULE[role](model), _nest(ports, tensors), dynamic_shapes=_nest(ports, dynamic), strict=False
    )


def _meta_tensor(port: Port) -> torch.Tensor:
    shape = [_TRACED_SIZE[size] if isinstance(size, str) else size for size in port.shape]
    return torch.empty(shape, dtype=_DTYPE[port.kind], device="meta")


def _nest(ports: list[Port], values: list[Any]) -> tuple[Any, ...]:
    """The role's call arguments: plain inputs one by one, then one list per kind of cache."""
    plain: list[Any] = []
    caches: dict[str, list[Any]] = {}
    for port, value in zip(ports, values, strict=True):
        kind = port.name.partition(".")[0]
        if kind in (PAST, PAST_SECOND_PASS):
            caches.setdefault(kind, []).append(value)
        else:
            plain.append(value)
    return (*plain, *caches.values())
