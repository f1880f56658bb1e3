"""The mixer's kernel as PTX for one GPU, compiled ahead of time: no GPU is needed, and where it runs no Triton.

Triton is imported when something is compiled, as only a machine that builds plans with plugins has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal, NamedTuple, get_args

from trol_runtime.errors import MissingExtraError, TrolError

MixerType = Literal["fp16", "bf16", "fp32"]
TYPES: tuple[MixerType, ...] = get_args(MixerType)
Cuda = tuple[int, int]  # release of CUDA that a driver reports: (12, 6)


class Ptx(NamedTuple):
    """A version of PTX, 80 for 8.0, and the first CUDA whose driver loads it (PTX ISA, "Release History")."""

    version: int
    cuda: Cuda


# SM -> the oldest PTX that knows it (sm_90a, sm_100a, ... of LLVM's NVPTX.td; before CUDA 12 nothing is compiled for):
# every driver of the GPU loads it, and the kernel's instructions are the same in newer ones.
PTX: dict[int, Ptx] = {
    **dict.fromkeys((80, 86, 87, 89, 90), Ptx(80, (12, 0))),
    **{100: Ptx(86, (12, 7)), 110: Ptx(90, (13, 0)), 120: Ptx(87, (12, 8))},
}
_POINTERS = ("first", "second", "weight", "bias", "mixed")  # the kernel's parameters: inputs, then the output
# Inputs and outputs of a plan lie at multiples of 256 bytes (IExecutionContext::setTensorAddress). Of what lies between
# TensorRT says nothing; should it be less than 16, the GPU stops with an error. Of the bias one element is read.
_ALIGNED = [_POINTERS.index(name) for name in ("first", "second", "weight", "mixed")]
_ELEMENTS_PER_THREAD = 16  # of each tensor: two loads of 128 bits in flight in fp16, four in fp32


@dataclass(frozen=True)
class MixerCode:
    """What a plan holds of the kernel.

    name, ptx:    the entry and its text
    threads:      of a block; there is one block per token
    shared_bytes: dynamic shared memory of a block
    """

    sm: int
    name: str
    ptx: str
    threads: int
    shared_bytes: int


def require_loadable(sm: int, cuda: Cuda) -> None:
    """Raise TrolError for a GPU that the kernel is not compiled for, or a driver that does not load its PTX."""
    if sm not in PTX:
        known = ", ".join(map(dotted, sorted(PTX)))
        raise TrolError(f"the mixer plugin does not exist for SM {dotted(sm)}, expected one of {known}")
    if cuda < PTX[sm].cuda:
        raise TrolError(
            f"the driver's CUDA is {cuda[0]}.{cuda[1]}; on SM {dotted(sm)} the mixer plugin needs "
            f"{'.'.join(map(str, PTX[sm].cuda))} or newer: update the driver"
        )


@cache  # every layer's mixer is the same
def compile_mixer(sm: int, dtype: MixerType, hidden: int) -> MixerCode:
    """The kernel for a GPU of `PTX`, for rows of `hidden` elements; raises MissingExtraError without Triton."""
    triton = require_triton()
    from trol_engines.mixer_kernel import trol_mixer

    width = triton.next_power_of_2(hidden)
    source = triton.compiler.ASTSource(
        fn=trol_mixer,
        signature={**dict.fromkeys(_POINTERS, f"*{dtype}"), "HIDDEN": "constexpr", "WIDTH": "constexpr"},
        constexprs={"HIDDEN": hidden, "WIDTH": width},
        attrs={(place,): [["tt.divisibility", 16]] for place in _ALIGNED},
    )
    target = triton.backends.compiler.GPUTarget("cuda", sm, 32)
    options = {"num_warps": max(width // (32 * _ELEMENTS_PER_THREAD), 1), "ptx_version": PTX[sm].version}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # the path of a source file has no place in a plan
        kernel = triton.compile(source, target=target, options=options)
    metadata = kernel.metadata
    assert metadata.global_scratch_size == metadata.profile_scratch_size == 0
    ptx = _without_scratch(kernel.asm["ptx"])
    return MixerCode(sm, metadata.name, ptx, 32 * metadata.num_warps, metadata.shared)


def require_triton() -> ModuleType:
    """The module triton; raises MissingExtraError without it."""
    try:
        import triton
        import triton.compiler
    except ImportError:
        raise MissingExtraError(
            "the mixer plugin needs triton, not installed here; install with: pip install 'trol-export[plugin]'"
        ) from None
    return triton


def dotted(sm: int) -> str:
    """87 as NVIDIA writes it: 8.7."""
    return f"{sm // 10}.{sm % 10}"


def _without_scratch(ptx: str) -> str:
    """The kernel with the parameters that TensorRT passes: inputs and output.

    Triton ends the parameters of every kernel with pointers to two scratch memories, used or not. A launch copies one
    value per parameter that the kernel has (cuLaunchKernel), which would be two more than there are.
    """
    entry = re.search(r"\.visible \.entry \w+\(([^)]*)\)", ptx)
    assert entry
    parameters = entry[1].split(",")
    assert len(parameters) == len(_POINTERS) + 2
    return f"{ptx[: entry.start(1)]}{','.join(parameters[: len(_POINTERS)])}\n{ptx[entry.end(1) :]}"
