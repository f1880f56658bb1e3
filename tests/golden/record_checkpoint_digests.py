"""Records digests of what the golden files' own checkpoint writer makes; `seeded_checkpoint` must reproduce them.

    PYTHONPATH=tests python -m golden.record_checkpoint_digests MAKE_CHECKPOINT.py

MAKE_CHECKPOINT.py is the program that wrote the checkpoints the official code ran on. For each configuration of
`seeded_checkpoint`: digests of config.json, of all names and shapes, and of some tensors' bytes per dtype and seed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from golden import seeded_checkpoint
from golden.golden import FOLDER

DIGESTS = FOLDER / "seeded_checkpoint_digests.json"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-internlm2": ("tiny-internlm2", {}),
    "tiny-phi3": ("tiny-phi3", {}),
    "distinct-internlm2": ("tiny-internlm2", seeded_checkpoint.DISTINCT_INTERNLM2),
    "distinct-phi3": ("tiny-phi3", seeded_checkpoint.DISTINCT_PHI3),
    "micro-internlm2": ("tiny-internlm2", seeded_checkpoint.MICRO_INTERNLM2),
    "micro-phi3": ("tiny-phi3", seeded_checkpoint.MICRO_PHI3),
    "1.8b": ("1.8b", {}),
    "7b": ("7b", {}),
    "3.8b": ("3.8b", {}),
}
# One tensor of each distribution, none of them large in the released sizes.
SAMPLES = {
    "internlm2": [
        "model.layers.1.attention.wqkv.lora_A.weight",
        "model.layers.1.feed_forward.w2.lora_B.weight",
        "model.norm.weight",
        "vit.vision_tower.vision_model.embeddings.class_embedding",
        "vit.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vit.vision_tower.vision_model.embeddings.position_embedding.weight",
        # Seed 7 of the tiny config draws a -0.0 here.
        "vit.vision_tower.vision_model.encoder.layers.1.self_attn.out_proj.weight",
        "vision_proj.0.bias",
    ],
    "phi3": [
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.position_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.encoder.layers.1.ls1",
        "vision_model.encoder.layers.1.attn.proj.weight",
        "language_model.model.layers.1.input_layernorm.weight",
        "vision_proj.0.bias",
    ],
}
LARGE_SAMPLES = {
    "internlm2": ["model.tok_embeddings.weight", "output.weight"],
    "phi3": ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"],
}


def sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def layer_number(gate: str) -> int:
    return int(gate.partition(".")[0])


def record(writer: ModuleType, name: str) -> dict[str, Any]:
    """The digests of one configuration, made by `writer`."""
    base, overrides = CONFIGS[name]
    config = writer.merge(writer.CONFIGS[base], overrides)
    specs, gating = writer.tensor_specs(config), writer.gating_specs(config)
    released = not overrides and not name.startswith("tiny")
    samples = SAMPLES[config["arch"]] + ([] if released else LARGE_SAMPLES[config["arch"]])
    shapes = [[tensor, list(spec[0])] for tensor, spec in [*specs.items(), *gating.items()]]
    return {
        "config_json": sha256(json.dumps(writer.config_json(config), sort_keys=True).encode()),
        "shapes": sha256(json.dumps(shapes).encode()),
        "gating": {
            tensor: sha256(writer.draw(f"trol_gating.{tensor}", *gating[tensor], 0).tobytes())
            for tensor in (min(gating), max(gating, key=layer_number))
        },
        "tensors": {
            f"{dtype} seed {seed}": {
                tensor: sha256(writer.to_bytes(writer.make_tensor(config, tensor, specs[tensor], seed), dtype))
                for tensor in samples
            }
            for dtype, seed in (("fp32", 0), ("fp16", 7), ("bf16", 7))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Record digests of the golden files' own checkpoint writer.")
    parser.add_argument("make_checkpoint", type=Path)
    spec = importlib.util.spec_from_file_location("make_checkpoint", parser.parse_args().make_checkpoint)
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    DIGESTS.write_text(json.dumps({name: record(writer, name) for name in CONFIGS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
