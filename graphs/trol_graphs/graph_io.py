"""The inputs and outputs of each role's graph: names, logical types and symbolic shapes, in calling order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trol_runtime.axis_names import BATCH, CACHE, CROPS, IMAGE_TOKENS, SEQ
from trol_runtime.cache_names import PAST, PAST_SECOND_PASS, PRESENT, PRESENT_SECOND_PASS, cache_names
from trol_runtime.model_config import ModelConfig

Role = Literal["vision", "prefill", "decode", "extend"]


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
    if role == "vision":
        return [Port("pixel_values", "float32", (CROPS, 3, vision.image_size, vision.image_size))]
    if role == "decode":
        return [
            Port("token_ids", "int64", (BATCH,)),
            *_rope_ports(config, BATCH, 1),
            Port("write_index", "int64", (BATCH,)),
            Port("attention_mask", "bool", (BATCH, 1, 1, CACHE)),
            *cache_ports(PAST, config, BATCH),
        ]
    prompt = [
        Port("input_ids", "int64", (1, SEQ)),
        Port("image_embeds", "compute", (IMAGE_TOKENS, decoder.hidden_size)),
        *_rope_ports(config, 1, SEQ),
    ]
    if role == "prefill":
        return [*prompt, *cache_ports(PAST, config, 1)]
    return [
        *prompt,
        Port("write_index", "int64", (1,)),
        Port("attention_mask", "bool", (1, 1, SEQ, CACHE)),
        *cache_ports(PAST, config, 1),
        *cache_ports(PAST_SECOND_PASS, config, 1),
    ]


def graph_outputs(role: Role, config: ModelConfig) -> list[Port]:
    """Outputs in the order the role returns them, caches flattened."""
    decoder, vision = config.decoder, config.vision
    if role == "vision":
        return [Port("image_embeds", "compute", (CROPS, vision.tokens_per_crop, decoder.hidden_size))]
    batch: int | str = BATCH if role == "decode" else 1
    outputs = [Port("logits", "float32", (batch, decoder.vocab_size)), *cache_ports(PRESENT, config, batch)]
    if role == "extend":
        outputs += cache_ports(PRESENT_SECOND_PASS, config, 1)
    return outputs


def _rope_ports(config: ModelConfig, batch: int | str, seq: int | str) -> list[Port]:
    shape = (batch, seq, config.decoder.head_dim // 2)
    return [Port("cos", "float32", shape), Port("sin", "float32", shape)]


def cache_ports(prefix: str, config: ModelConfig, batch: int | str) -> list[Port]:
    """Key and value cache of every layer, (batch, kv heads, cache length, head width) each."""
    shape = (batch, config.decoder.kv_heads, CACHE, config.decoder.head_dim)
    return [Port(name, "compute", shape) for name in cache_names(prefix, config.decoder.layers)]
