"""The inputs and outputs of each role's graph: names, logical types and symbolic shapes, in calling order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trol_runtime.model_config import ModelConfig

Role = Literal["vision", "prefill", "decode"]

# What a symbolic axis is called in the graphs.
CROPS, SEQ, BATCH, IMAGE_TOKENS, CACHE = "crops", "sequence_length", "batch", "image_tokens", "cache_length"


@dataclass(frozen=True)
class Port:
    """One input or output of a graph.

    kind: "compute" follows the graph's precision, the others do not. Pixels, rotary tables and logits are "float32" at
      every precision: rounding them to fp16 is a flaw of the official load, not part of the model.
    shape: a number, or the name of a symbolic axis
    """

    name: str
    kind: Literal["compute", "float32", "int64", "bool"]
    shape: tuple[int | str, ...]


def graph_inputs(role: Role, config: ModelConfig) -> list[Port]:
    """Inputs in the order of the role's `forward` (`trol_graphs.roles`), caches flattened."""
    decoder, vision = config.decoder, config.vision
    half = decoder.head_dim // 2
    if role == "vision":
        return [Port("pixel_values", "float32", (CROPS, 3, vision.image_size, vision.image_size))]
    if role == "prefill":
        return [
            Port("input_ids", "int64", (1, SEQ)),
            Port("image_embeds", "compute", (IMAGE_TOKENS, decoder.hidden_size)),
            Port("cos", "float32", (1, SEQ, half)),
            Port("sin", "float32", (1, SEQ, half)),
            *cache_ports("past_key_values", config, 1),
        ]
    return [
        Port("token_ids", "int64", (BATCH,)),
        Port("cos", "float32", (BATCH, 1, half)),
        Port("sin", "float32", (BATCH, 1, half)),
        Port("write_index", "int64", (BATCH,)),
        Port("attention_mask", "bool", (BATCH, 1, 1, CACHE)),
        *cache_ports("past_key_values", config, BATCH),
    ]


def graph_outputs(role: Role, config: ModelConfig) -> list[Port]:
    """Outputs in the order the role returns them, caches flattened."""
    decoder, vision = config.decoder, config.vision
    if role == "vision":
        return [Port("image_embeds", "compute", (CROPS, vision.tokens_per_crop, decoder.hidden_size))]
    batch: int | str = 1 if role == "prefill" else BATCH
    return [Port("logits", "float32", (batch, decoder.vocab_size)), *cache_ports("present", config, batch)]


def cache_ports(prefix: str, config: ModelConfig, batch: int | str) -> list[Port]:
    """Key and value cache of every layer, (batch, kv heads, cache length, head width) each."""
    shape = (batch, config.decoder.kv_heads, CACHE, config.decoder.head_dim)
    return [
        Port(f"{prefix}.{layer}.{part}", "compute", shape)
        for layer in range(config.decoder.layers)
        for part in ("key", "value")
    ]
