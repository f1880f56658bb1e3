"""How a context of TensorRT for RTX is configured: all that its library has at run time beside full TensorRT's.

RTX compiles kernels on the GPU that runs them, some while the plan runs already: until one for a new shape is there, a
slower one serves ("Working with Dynamic Shapes"). A CUDA graph that is captured from outside would keep the slow ones
for good. So RTX is asked to make graphs by itself ("Working with RTX CUDA Graphs"): it captures once a shape's kernels
are compiled, and again when shapes or addresses change (https://github.com/pytorch/TensorRT/pull/4187). What cannot be
captured it runs without. Of prompts, where almost every length is a new shape, no better kernels are compiled: each
would cost seconds of the CPU for a run that may never come again, and its place in the cache on the disk for good. Not
run on a GPU yet.
"""

from __future__ import annotations

from typing import Any

from trol_runtime.rtx_compiled import RtxCompiled

RTX_MODULE = "tensorrt_rtx"
_REPEATED = "decode"  # the role whose runs follow each other with the same shapes and addresses, so that a graph pays
_ANY_LENGTH = ("prefill", "extend")  # the roles that see as many shapes as there are lengths of prompts


class RtxConfig:
    """An IRuntimeConfig for one context, whose activations lie in memory that it is lent, and its runtime cache.

    Both must outlive the context (TensorRT Edge-LLM, "Rtx Runtime Cache").

    plan: what the engine was made from. role: what it runs, None where that is nothing of an engine
    """

    def __init__(self, trt: Any, engine: Any, plan: bytes, role: str | None) -> None:
        self.config = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if role == _REPEATED:
            self.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if role in _ANY_LENGTH:
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            self.config.dynamic_shapes_kernel_specialization_strategy = strategies.NONE
        cache = self.config.create_runtime_cache()
        self.compiled = RtxCompiled(trt, plan, cache)
        self.config.set_runtime_cache(cache)
