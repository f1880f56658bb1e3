"""What the mixer costs: the bytes it moves, and what its kernel takes of a GPU, read from the compiler.

`python -m trol_engines.mixer_cost` writes the table in docs/mixer.md.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trol_engines.mixer_code import PTX, MixerCode, compile_mixer, dotted, require_triton

_RELEASED = {"1.8B": 2048, "3.8B": 3072, "7B": 4096}
_PROMPT = 1300  # tokens: a picture and a question


@dataclass(frozen=True)
class Resources:
    """What one thread takes.

    registers:     of 32 bits
    spilled_bytes: registers that went to memory instead, written and read
    access_bytes:  of every load from and store to global memory, in the program's order
    """

    registers: int
    spilled_bytes: int
    access_bytes: tuple[int, ...]


def least_bytes(tokens: int, hidden: int, itemsize: int) -> int:
    """What any mixer moves: both passes in, the mixed rows out, the gate's weight and bias once."""
    return (3 * tokens * hidden + hidden + 1) * itemsize


def resources(code: MixerCode) -> Resources:
    """What NVIDIA's assembler, the one that comes with Triton, makes of the PTX that a plan holds."""
    said = _assemble(code)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert registers
    assert len(spilled) == 2
    accesses = re.findall(r"\b(?:ld|st)\.global(?:\.v(\d))?\.b(\d+)", code.ptx)
    return Resources(
        int(registers[1]),
        sum(map(int, spilled)),
        tuple(int(elements or 1) * int(bits) // 8 for elements, bits in accesses),
    )


def report() -> str:
    """A table for the released widths in fp16: what a prompt moves, and a thread's registers on every GPU."""
    gpus = sorted(PTX)
    rows = [["model", "moves", "threads", *(f"SM {dotted(sm)}" for sm in gpus)], ["---"] * (3 + len(gpus))]
    for size, hidden in _RELEASED.items():
        codes = [compile_mixer(sm, "fp16", hidden) for sm in gpus]
        moved = f"{least_bytes(_PROMPT, hidden, itemsize=2) / 1e6:.1f} MB"
        rows.append([size, moved, str(codes[0].threads), *(str(resources(code).registers) for code in codes)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _assemble(code: MixerCode) -> str:
    """What `ptxas -v` says."""
    require_triton()
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "mixer.ptx"
        source.write_text(code.ptx)
        ptxas = [get_ptxas(code.sm).path, "-v", f"--gpu-name={sm_arch_from_capability(code.sm)}"]
        run = subprocess.run([*ptxas, source, "-o", source.with_suffix(".cubin")], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"ptxas refuses the mixer for SM {dotted(code.sm)}: {run.stderr}")
    return run.stderr


if __name__ == "__main__":
    print(report())
