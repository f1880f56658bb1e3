"""How much memory an engine takes on a CPU, known from its manifest before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from trol_runtime.debian_packages import debian_packages
from trol_runtime.errors import LimitError
from trol_runtime.jetson import read_jetson
from trol_runtime.manifest import DTYPE_BYTES, Manifest, TensorEntry
from trol_runtime.system_memory import memory_available_bytes

_UNITS = ("bytes", "KiB", "MiB", "GiB")


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes an engine takes on the CPU, activations aside.

    mapped: weights that stay in the file's pages; the system can drop and reread them
    anonymous: fp32 copies of weights that are stored in less (x86 computes in fp32), which must fit
    kv_per_token: what each token of each row adds
    """

    mapped: int
    anonymous: int
    kv_per_token: int

    def __str__(self) -> str:
        copies = f" + {readable(self.anonymous)} as fp32 copies" if self.anonymous else ""
        return f"{readable(self.mapped)} of mapped weights{copies} + {readable(self.kv_per_token)} per token"


def memory_need(manifest: Manifest, *, both_passes: bool = False) -> MemoryNeed:
    """The need of the CPU backend.

    both_passes: sessions hold what both passes over a prompt computed: kept prefixes, and prompts read in chunks
    """
    return MemoryNeed(
        mapped=sum(tensor.nbytes for tensor in manifest.tensors.values()),
        anonymous=sum(4 * tensor.nbytes // DTYPE_BYTES[tensor.stored] for tensor in _widened(manifest)),
        kv_per_token=(2 if both_passes else 1) * manifest.model.kv_bytes_per_token(),
    )


def fp32_weight_bytes(manifest: Manifest) -> int:
    """Bytes of the weights where each is held in the type it computes in: all of MemoryNeed's, those widened once."""
    need = memory_need(manifest)
    return need.mapped - sum(tensor.nbytes for tensor in _widened(manifest)) + need.anonymous


def require_memory(manifest: Manifest) -> None:
    """Raise LimitError when the fp32 copies alone cannot fit into the memory available now."""
    need, available = memory_need(manifest), memory_available_bytes()
    if available is not None and need.anonymous > available:
        raise LimitError(f"the engine needs {need}, {readable(available)} are available; {_way_with_fewer_bytes()}")


def _way_with_fewer_bytes() -> str:
    if read_jetson(debian_packages()) is not None:
        return "take --backend tensorrt, which keeps weights as they are stored"
    return "free memory, use a smaller model, or export it with --precision fp32, whose weights stay in the file"


def _widened(manifest: Manifest) -> list[TensorEntry]:
    """Weights that become fp32; of the token table only the rows that are looked up do."""
    table = manifest.model.token_table
    return [tensor for name, tensor in manifest.tensors.items() if name != table and DTYPE_BYTES[tensor.stored] < 4]


def readable(count: int) -> str:
    """Bytes in the unit a person would take: "4.57 GiB"."""
    step = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    number = count / 1024**step
    return f"{number:.0f} {_UNITS[step]}" if step == 0 or number >= 100 else f"{number:.2f} {_UNITS[step]}"
