"""What a run has to hold at the least, counted from the manifest: weights + fp32 copies + KV cache + activations.

Activations are the values alive at once at the widest point of the run, in fp32. With s prompt tokens, hidden size h,
inner size f, n query heads, g key/value heads of width d (all times 4 bytes):

    prefill, attention   3 s h + 2 s (n + 2 g) d + n s s    residual, first pass and norm; q, k, v before and after
                                                            rotation; the scores of all heads
    prefill, MLP         3 s h + 3 s f                      residual, first pass and norm; gate, up and their product

read in chunks of p tokens, every s but the last of `n s s` is p, and the cache holds both passes meanwhile.

With c crops of t positions, w channels, inner size i, a heads in the vision tower:

    vision, attention    2 c t w + 3 c t w + c a t t        residual and norm; q, k, v; the scores of all heads
    vision, MLP          2 c t w + 2 c t i                  residual and norm; before and after the activation

Pictures are encoded before prefill and their activations are freed, so the largest of the four counts. The count leaves
out what a kernel needs inside itself and the program's own memory: the interpreter, libraries, the graph.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trol_runtime.manifest import Manifest
from trol_runtime.memory_need import memory_need
from trol_runtime.model_config import ClipVision, Decoder, InternVitVision

_FP32_BYTES = 4


@dataclass(frozen=True)
class MemoryBound:
    """Bytes. copies: fp32 copies of weights stored in less, 0 for an fp32 engine."""

    weights: int
    copies: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.copies + self.cache + self.activations

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


def memory_bound(
    manifest: Manifest, crops: int, prompt_tokens: int, cache_bytes: int, prefill_chunk: int | None = None
) -> MemoryBound:
    """The bound of one row: `crops` encoded together, `prompt_tokens` prefilled, `cache_bytes` allocated at the end."""
    need = memory_need(manifest)
    model = manifest.model
    activations = [prefill_activations(model.decoder, prompt_tokens, prefill_chunk)]
    if crops:
        activations.append(vision_activations(model.vision, crops))
    return MemoryBound(
        weights=need.mapped,
        copies=need.anonymous,
        cache=cache_bytes if prefill_chunk is None else 2 * cache_bytes,
        activations=max(activations),
    )


def prefill_activations(decoder: Decoder, prompt_tokens: int, prefill_chunk: int | None = None) -> int:
    """Bytes alive at once at the widest point of a layer's second pass."""
    tokens = min(prefill_chunk or prompt_tokens, prompt_tokens)
    stream = 3 * tokens * decoder.hidden_size
    heads_width = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    attention = stream + 2 * tokens * heads_width + decoder.heads * tokens * prompt_tokens
    mlp = stream + 3 * tokens * decoder.intermediate_size
    return _FP32_BYTES * max(attention, mlp)


def vision_activations(vision: ClipVision | InternVitVision, crops: int) -> int:
    """Bytes alive at once at the widest point of a layer of the vision tower."""
    positions = crops * (vision.grid**2 + 1)  # patches and the class token
    stream = 2 * positions * vision.hidden_size
    attention = stream + 3 * positions * vision.hidden_size + vision.heads * positions * (vision.grid**2 + 1)
    mlp = stream + 2 * positions * vision.intermediate_size
    return _FP32_BYTES * max(attention, mlp)
