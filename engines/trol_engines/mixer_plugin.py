"""`trol::Mixer` as a TensorRT plugin whose kernel lies in the plan: no Python and no Triton where it runs.

The plugin takes the place of the model-local function of the same name, which remains what is built wherever the plugin
cannot be. Written against NVIDIA's documentation of `tensorrt.plugin` and checked against a list of its calls
(tests/fake_tensorrt_plugin.py); not run on a GPU yet.
"""

# No `from __future__ import annotations`: TensorRT reads the types in the signatures below, and must not find strings.

from functools import cache

import onnx_ir as ir

from trol_engines.mixer_code import Cuda, MixerType, compile_mixer, require_loadable, require_triton

NAMESPACE, NAME = "trol", "Mixer"  # the domain and name of the function
_TYPE: dict[str, MixerType] = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}  # tensorrt.DataType -> Triton's name


def call_plugin(model: ir.Model) -> int:
    """Mark every mixer of a graph for the registered plugin; how many there are.

    Since TensorRT 10.15 the parser prefers a plugin to a function only where the node says `plugin_namespace`; with
    `aot` it takes no plugin that would call back into Python.
    """
    mixers = [node for node in model.graph.all_nodes() if (node.domain, node.op_type) == (NAMESPACE, NAME)]
    for node in mixers:
        node.attributes.add(ir.AttrString("plugin_namespace", NAMESPACE))
        node.attributes.add(ir.AttrInt64("aot", 1))
    return len(mixers)


@cache  # TensorRT takes a plugin of one name once
def register_mixer(sm: int, cuda: Cuda) -> None:
    """Make the plugin known to this process, for the GPU it builds on and the CUDA release of its driver.

    Raises TrolError, or MissingExtraError without Triton, where only the function can be built.
    """
    require_triton()
    require_loadable(sm, cuda)
    _define(sm)


def _define(sm: int) -> None:
    """The three functions TensorRT asks; it knows inputs by the names of their parameters."""
    import tensorrt.plugin as trtp

    plugin = f"{NAMESPACE}::{NAME}"

    @trtp.register(plugin)
    def describe(
        first: trtp.TensorDesc, second: trtp.TensorDesc, weight: trtp.TensorDesc, bias: trtp.TensorDesc
    ) -> trtp.TensorDesc:
        return first.like()

    @trtp.autotune(plugin)
    def combine_types(
        first: trtp.TensorDesc,
        second: trtp.TensorDesc,
        weight: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination(", ".join(["FP32|FP16|BF16"] * 5))]  # all of one type, rows without gaps

    @trtp.aot_impl(plugin)
    def embed(
        first: trtp.TensorDesc,
        second: trtp.TensorDesc,
        weight: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        code = compile_mixer(sm, _TYPE[first.dtype.name], first.shape[1])
        launch = trtp.KernelLaunchParams()
        launch.grid_x = first.shape_expr[0]
        launch.block_x = code.threads
        launch.shared_mem = code.shared_bytes
        return code.name, code.ptx, launch, trtp.SymIntExprs(0)
