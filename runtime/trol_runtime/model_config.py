"""The shape of a TroL model as frozen dataclasses, and the byte counts that follow from it.

Read from a checkpoint by `trol_export.checkpoint_config`, stored in the manifest, used by every stage. No torch here.
Field names are the field's standard terms; where the official config.json calls a thing differently, the comment says
so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ClipVision:
    """CLIP ViT tower of TroL-1.8B and 7B: one square crop per picture, class token dropped after the last layer."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    patch_size: int
    grid: int  # patches per side; from the position table's shape, not from config.json
    layer_norm_eps: float
    kind: Literal["clip"] = "clip"

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels (490 for the released models)."""
        return self.grid * self.patch_size

    @property
    def tokens_per_crop(self) -> int:
        return self.grid**2

    @property
    def feature_size(self) -> int:
        """Channels the projector reads."""
        return self.hidden_size


@dataclass(frozen=True)
class InternVitVision:
    """InternViT of TroL-3.8B: 1 to 6 tiles and a thumbnail per picture, pixel shuffle before the projector."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    patch_size: int
    grid: int  # patches per side, even
    layer_norm_eps: float
    norm_type: Literal["layer_norm", "rms_norm"]
    qkv_bias: bool
    qk_normalization: bool
    kind: Literal["internvit"] = "internvit"

    # The official tiling function's defaults; config.json's min/max_dynamic_patch is never read by the official code.
    max_tiles = 6
    # downsample_ratio 0.5: a 2x2 block of patches becomes one token.
    shuffle = 2

    @property
    def image_size(self) -> int:
        """Side of a square tile in pixels (448 for the released model)."""
        return self.grid * self.patch_size

    @property
    def tokens_per_crop(self) -> int:
        return (self.grid // self.shuffle) ** 2

    @property
    def feature_size(self) -> int:
        """Channels the projector reads: four neighbouring patches side by side."""
        return self.hidden_size * self.shuffle**2


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    kind: "default"; "su" and "yarn" (phi3 only) scale frequencies by short or long factors per row.
    "dynamic" NTK scaling (InternLM2) has no effect up to the config's maximum, which engines never exceed: it is
    "default" here.
    """

    theta: float
    kind: Literal["default", "su", "yarn"] = "default"
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    original_max_positions: int = 0
    max_positions: int = 0  # the config's own maximum: with the original one it gives the tables' scale


@dataclass(frozen=True)
class Decoder:
    """The language trunk: InternLM2 (partial LoRA, lora_rank > 0) or Phi-3 (lora_rank 0)."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int  # rows of the head
    embedding_rows: int  # internlm2: vocab_size + 1, the last row is <image>
    rms_norm_eps: float
    rope: Rope
    max_positions: int  # the most positions the official code computes as written here (see --max-seq)
    lora_rank: int = 0
    attention_bias: bool = False  # InternLM2's `bias`: on wqkv and wo

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a TroL checkpoint that changes arithmetic or tokens, weights aside."""

    arch: Literal["internlm2", "phi3"]
    vision: ClipVision | InternVitVision
    decoder: Decoder
    image_token_id: int  # <image> or <IMG_CONTEXT>, one per image token
    eos_token_ids: tuple[int, ...]
    bos_token_id: int
    pad_token_id: int

    @property
    def token_table(self) -> str:
        """The tensor whose rows are looked up, not multiplied: it is never copied or packed."""
        return {"internlm2": "model.tok_embeddings.weight", "phi3": "language_model.model.embed_tokens.weight"}[
            self.arch
        ]

    def kv_bytes_per_token(self, bytes_per_value: int = 4) -> int:
        """Bytes of K and V that one token of one row adds over all layers (first pass only; fp32 by default)."""
        d = self.decoder
        return 2 * d.layers * d.kv_heads * d.head_dim * bytes_per_value

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
