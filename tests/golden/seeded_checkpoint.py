"""Writes official-format TroL checkpoints with seeded random weights: the models behind the golden outputs.

    python tests/golden/seeded_checkpoint.py tiny-internlm2 OUT --seed 0 --dtype fp32

This module is a test-data specification. CONFIGS says what goes into config.json, `tensor_table` names every tensor
with its shape and distribution, `draw` fixes its values: numpy's default generator seeded with [crc32(name), seed]. So
a tensor depends on its own name and the seed alone, never on its neighbours, its order or the sharding.

The directory holds config.json, model.safetensors (or shards and their index) and trol_gating.pt. No tokenizer.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Config = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# Configurations. Keys beside the parts of config.json: `arch`; `lora_r`, the rank of the partial LoRA; `gate_scale`,
# the spread of the gate's pre-activation; `zero_pad_row`, whether the pad token's embedding is all zeros.
# ---------------------------------------------------------------------------------------------------------------------


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """A deep copy of `base` with `overrides` merged in: dicts key by key, anything else (lists too) is replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in overrides.items():
        both_are_dicts = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_are_dicts else copy.deepcopy(value)
    return merged


def transformer(hidden: int, intermediate: int, layers: int, heads: int) -> Config:
    """The size keys that trunks and vision towers share."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def su_factors(head_dim: int) -> tuple[list[float], list[float]]:
    """Short and long RoPE factors, head_dim / 2 each: stand-ins with the range of Phi-3-mini-128k's."""
    steps = [i / max(head_dim // 2 - 1, 1) for i in range(head_dim // 2)]
    short = [round(1.05 + 2.0 * step, 4) for step in steps]
    long = [round(1.03 * (64.81 / 1.03) ** step, 4) for step in steps]
    return short, long


def internlm2_trunk(*, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> Config:
    """Sizes of an InternLM2 trunk; the <image> token is the extra row after the vocabulary."""
    sizes = transformer(hidden, intermediate, layers, heads)
    return {**sizes, "num_key_value_heads": kv_heads, "vocab_size": vocab, "image_token_index": vocab}


def phi3_trunk(*, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> Config:
    """Sizes of a Phi-3 trunk, with RoPE factors of the length its heads need."""
    short, long = su_factors(hidden // heads)
    return {
        **transformer(hidden, intermediate, layers, heads),
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rope_scaling": {"type": "su", "short_factor": short, "long_factor": long},
    }


# The official config.json does not describe the CLIP tower (it is openai/clip-vit-large-patch14-336 by name, its
# position table widened to a grid of 35). These checkpoints describe it under `vision_tower_config`.
INTERNLM2: Config = {
    "arch": "internlm2",
    "lora_r": 256,
    "gate_scale": 0.07,
    "zero_pad_row": False,
    "llm": {
        "architectures": ["TroLForCausalLM"],
        "model_type": "internlm",
        "attn_implementation": "eager",
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
    },
    "clip": {
        **transformer(hidden=1024, intermediate=4096, layers=24, heads=16),
        "num_channels": 3,
        "patch_size": 14,
        "image_size": 336,
        "grid": 35,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}

PHI3: Config = {
    "arch": "phi3",
    "gate_scale": 0.07,
    "zero_pad_row": False,
    "top": {
        "architectures": ["TroLForCausalLM"],
        "model_type": "trol",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "use_thumbnail": True,
        "pad2square": False,
        "ps_version": "v1",
        "select_layer": -1,
        "template": "phi3-chat",
        "torch_dtype": "float16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
    },
    "llm": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
    },
    "vit": {
        **transformer(hidden=1024, intermediate=4096, layers=24, heads=16),
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "image_size": 448,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "num_channels": 3,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
        "torch_dtype": "float16",
        "use_flash_attn": True,
    },
}

TINY_INTERNLM2: Config = {
    "gate_scale": 0.2,
    "llm": internlm2_trunk(hidden=64, intermediate=160, layers=3, heads=4, kv_heads=2, vocab=1000),
    "clip": {"num_hidden_layers": 2, "intermediate_size": 256},
}
TINY_PHI3: Config = {
    "gate_scale": 0.2,
    "top": {"image_token_index": 990},
    "llm": phi3_trunk(hidden=96, intermediate=224, layers=3, heads=6, kv_heads=6, vocab=1000),
    "vit": transformer(hidden=64, intermediate=160, layers=3, heads=4),
}

# No two sizes are equal, derived ones included: a size taken for another cannot go unnoticed.
DISTINCT_INTERNLM2: Config = {
    "gate_scale": 0.2,
    "lora_r": 17,
    "llm": internlm2_trunk(hidden=112, intermediate=160, layers=5, heads=8, kv_heads=2, vocab=210),
    "clip": {
        **transformer(hidden=143, intermediate=190, layers=9, heads=11),
        "patch_size": 15,
        "image_size": 150,
        "grid": 10,
    },
}
DISTINCT_PHI3: Config = {
    "gate_scale": 0.2,
    "top": {"image_token_index": 290, "force_image_size": 264},
    "llm": phi3_trunk(hidden=160, intermediate=150, layers=6, heads=10, kv_heads=2, vocab=310),
    "vit": {**transformer(hidden=117, intermediate=170, layers=4, heads=13), "patch_size": 12, "image_size": 264},
}

# As small as the architecture allows, for tests of what surrounds the arithmetic: 16 image tokens a crop, and a
# vocabulary that holds 256 bytes and some special tokens.
MICRO_INTERNLM2: Config = {
    "gate_scale": 0.2,
    "lora_r": 8,
    "llm": internlm2_trunk(hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, vocab=320),
    "clip": {
        **transformer(hidden=16, intermediate=24, layers=2, heads=2),
        "patch_size": 4,
        "image_size": 16,
        "grid": 4,
    },
}
MICRO_PHI3: Config = {
    "gate_scale": 0.2,
    "top": {"image_token_index": 310, "force_image_size": 32},
    "llm": phi3_trunk(hidden=32, intermediate=48, layers=2, heads=4, kv_heads=4, vocab=320),
    "vit": {**transformer(hidden=16, intermediate=24, layers=2, heads=2), "patch_size": 4, "image_size": 32},
}

CONFIGS: dict[str, Config] = {
    "tiny-internlm2": merge(INTERNLM2, TINY_INTERNLM2),
    "tiny-phi3": merge(PHI3, TINY_PHI3),
    "distinct-internlm2": merge(INTERNLM2, DISTINCT_INTERNLM2),
    "distinct-phi3": merge(PHI3, DISTINCT_PHI3),
    "micro-internlm2": merge(INTERNLM2, MICRO_INTERNLM2),
    "micro-phi3": merge(PHI3, MICRO_PHI3),
    "1.8b": merge(
        INTERNLM2,
        {
            "llm": internlm2_trunk(hidden=2048, intermediate=8192, layers=24, heads=16, kv_heads=8, vocab=92544)
            | {"max_length": 4096}
        },
    ),
    "7b": merge(
        INTERNLM2,
        {
            "llm": internlm2_trunk(hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocab=92544)
            | {"max_length": 4096}
        },
    ),
    "3.8b": merge(
        PHI3,
        {
            "top": {"image_token_index": 32013},
            "llm": phi3_trunk(hidden=3072, intermediate=8192, layers=32, heads=32, kv_heads=32, vocab=32020),
        },
    ),
}


def read_config(config: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """The full configuration behind a name of CONFIGS or a dict, with `overrides` merged in.

    A dict may name a "base" among CONFIGS and hold only the differences. Raises KeyError for an unknown name.
    """
    if isinstance(config, str):
        full = CONFIGS[config]
    else:
        differences = {key: value for key, value in config.items() if key != "base"}
        full = merge(CONFIGS[config["base"]] if "base" in config else {}, differences)
    return merge(full, overrides or {})


def config_json(config: Config) -> Config:
    """What the official loader reads from config.json."""
    if config["arch"] == "internlm2":
        return {**config["llm"], "vision_tower_config": config["clip"]}
    return {**config["top"], "llm_config": config["llm"], "vision_config": config["vit"]}


# ---------------------------------------------------------------------------------------------------------------------
# Tensors: name -> shape and distribution, in the order of the file.
# ---------------------------------------------------------------------------------------------------------------------


class Normal(NamedTuple):
    """A tensor of independent normal draws."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0

    @property
    def size(self) -> int:
        return math.prod(self.shape)


# Nested as the state dict's names are: "a.b.weight" is tree["a"]["b"]["weight"].
Tree = Mapping[str, "Normal | Tree"]


def linear(outputs: int, inputs: int, bias: bool = False, gain: float = 1.0) -> Tree:
    weight = Normal((outputs, inputs), std=gain / math.sqrt(inputs))
    return {"weight": weight, "bias": Normal((outputs,), std=0.05)} if bias else {"weight": weight}


def partial_lora(outputs: int, inputs: int, rank: int, bias: bool = False) -> Tree:
    return {
        "ffn": linear(outputs, inputs, bias),
        "lora_A": linear(rank, inputs),
        "lora_B": linear(outputs, rank, gain=0.7),
    }


def rms_norm(size: int) -> Tree:
    return {"weight": Normal((size,), std=0.1, mean=1.0)}


def layer_norm(size: int) -> Tree:
    return {**rms_norm(size), "bias": Normal((size,), std=0.05)}


def repeat(count: int, layer: Tree) -> Tree:
    return {str(index): layer for index in range(count)}


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Normal]]:
    for name, value in tree.items():
        if isinstance(value, Normal):
            yield prefix + name, value
        else:
            yield from flatten(value, f"{prefix}{name}.")


def qkv_rows(llm: Config) -> int:
    head_dim = llm["hidden_size"] // llm["num_attention_heads"]
    return (llm["num_attention_heads"] + 2 * llm["num_key_value_heads"]) * head_dim


def internlm2_tree(config: Config) -> Tree:
    llm, rank = config["llm"], config["lora_r"]
    hidden, intermediate, vocab = llm["hidden_size"], llm["intermediate_size"], llm["vocab_size"]
    layer = {
        "attention": {
            "wqkv": partial_lora(qkv_rows(llm), hidden, rank, llm["bias"]),
            "wo": partial_lora(hidden, hidden, rank, llm["bias"]),
        },
        "feed_forward": {
            "w1": partial_lora(intermediate, hidden, rank),
            "w2": partial_lora(hidden, intermediate, rank),
            "w3": partial_lora(intermediate, hidden, rank),
        },
        "attention_norm": rms_norm(hidden),
        "ffn_norm": rms_norm(hidden),
    }
    return {
        "model": {
            "tok_embeddings": {"weight": Normal((vocab + 1, hidden), std=0.7)},
            "layers": repeat(llm["num_hidden_layers"], layer),
            "norm": rms_norm(hidden),
        },
        "output": linear(vocab, hidden, gain=3.0),
        "vit": {"vision_tower": {"vision_model": clip_tree(config["clip"])}},
        "vision_proj": {
            "0": linear(hidden, config["clip"]["hidden_size"], bias=True),
            "2": linear(hidden, hidden, bias=True),
        },
    }


def clip_tree(clip: Config) -> Tree:
    width, intermediate, patch = clip["hidden_size"], clip["intermediate_size"], clip["patch_size"]
    patch_values = clip["num_channels"] * patch**2
    layer = {
        "self_attn": {name: linear(width, width, bias=True) for name in ("k_proj", "v_proj", "q_proj", "out_proj")},
        "layer_norm1": layer_norm(width),
        "mlp": {"fc1": linear(intermediate, width, bias=True), "fc2": linear(width, intermediate, bias=True)},
        "layer_norm2": layer_norm(width),
    }
    return {
        "embeddings": {
            "class_embedding": Normal((width,), std=0.5),
            "patch_embedding": {
                "weight": Normal((width, clip["num_channels"], patch, patch), std=1 / math.sqrt(patch_values))
            },
            "position_embedding": {"weight": Normal((clip["grid"] ** 2 + 1, width), std=0.3)},
        },
        "pre_layrnorm": layer_norm(width),  # the official spelling
        "encoder": {"layers": repeat(clip["num_hidden_layers"], layer)},
        "post_layernorm": layer_norm(width),
    }


def phi3_tree(config: Config) -> Tree:
    llm = config["llm"]
    hidden, intermediate, vocab = llm["hidden_size"], llm["intermediate_size"], llm["vocab_size"]
    layer = {
        "self_attn": {"o_proj": linear(hidden, hidden), "qkv_proj": linear(qkv_rows(llm), hidden)},
        "mlp": {"gate_up_proj": linear(2 * intermediate, hidden), "down_proj": linear(hidden, intermediate)},
        "input_layernorm": rms_norm(hidden),
        "post_attention_layernorm": rms_norm(hidden),
    }
    shuffled = config["vit"]["hidden_size"] * int(1 / config["top"]["downsample_ratio"]) ** 2
    return {
        "vision_model": internvit_tree(config["vit"]),
        "language_model": {
            "model": {
                "embed_tokens": {"weight": Normal((vocab, hidden), std=0.7)},
                "layers": repeat(llm["num_hidden_layers"], layer),
                "norm": rms_norm(hidden),
            },
            "lm_head": linear(vocab, hidden, gain=3.0),
        },
        "vision_proj": {
            "0": layer_norm(shuffled),
            "1": linear(hidden, shuffled, bias=True),
            "3": linear(hidden, hidden, bias=True),
        },
    }


def internvit_tree(vit: Config) -> Tree:
    width, intermediate, patch = vit["hidden_size"], vit["intermediate_size"], vit["patch_size"]
    positions = (vit["image_size"] // patch) ** 2 + 1
    norm = rms_norm if vit["norm_type"] == "rms_norm" else layer_norm
    query_key_norms = {"q_norm": rms_norm(width), "k_norm": rms_norm(width)} if vit["qk_normalization"] else {}
    layer: Tree = {
        "ls1": Normal((width,), std=0.5 / 6, mean=0.5),
        "ls2": Normal((width,), std=0.5 / 6, mean=0.5),
        "attn": {
            "qkv": linear(3 * width, width, vit["qkv_bias"]),
            **query_key_norms,
            "proj": linear(width, width, bias=True),
        },
        "mlp": {"fc1": linear(intermediate, width, bias=True), "fc2": linear(width, intermediate, bias=True)},
        "norm1": norm(width),
        "norm2": norm(width),
    }
    return {
        "embeddings": {
            "class_embedding": Normal((1, 1, width), std=0.5),
            "position_embedding": Normal((1, positions, width), std=0.3),
            "patch_embedding": {
                "weight": Normal((width, 3, patch, patch), std=1 / math.sqrt(3 * patch**2)),
                "bias": Normal((width,), std=0.05),
            },
        },
        "encoder": {"layers": repeat(vit["num_hidden_layers"], layer)},
    }


def tensor_table(config: Config) -> dict[str, Normal]:
    """Every tensor of the safetensors files."""
    tree = {"internlm2": internlm2_tree, "phi3": phi3_tree}[config["arch"]](config)
    return dict(flatten(tree))


def gating_table(config: Config) -> dict[str, Normal]:
    """Every tensor of trol_gating.pt: one gate per layer, all different, though only the last one has any effect."""
    hidden = config["llm"]["hidden_size"]
    gate = {
        "weight": Normal((1, hidden), std=config["gate_scale"] / math.sqrt(hidden)),
        "bias": Normal((1,), std=0.1),
    }
    return dict(flatten(repeat(config["llm"]["num_hidden_layers"], gate)))


def draw(name: str, distribution: Normal, seed: int) -> np.ndarray:
    """The float32 values of one tensor."""
    generator = np.random.default_rng([zlib.crc32(name.encode()), seed])
    values = generator.standard_normal(distribution.shape, dtype=np.float32)
    values *= np.float32(distribution.std)
    if distribution.mean:  # adding zero would turn the rare -0.0 into 0.0
        values += np.float32(distribution.mean)
    return values


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAFETENSORS_DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def checkpoint_tensor(config: Config, name: str, seed: int = 0, dtype: str = "fp32") -> torch.Tensor:
    """One tensor of the safetensors files, rounded to nearest even where `dtype` is narrower than fp32."""
    values = draw(name, tensor_table(config)[name], seed)
    if config.get("zero_pad_row") and name.endswith(("tok_embeddings.weight", "embed_tokens.weight")):
        values[config["llm"]["pad_token_id"]] = 0
    return torch.from_numpy(values).to(TORCH_DTYPES[dtype])


def gating_tensors(config: Config, seed: int = 0, dtype: str = "fp32") -> dict[str, torch.Tensor]:
    """The state dict of trol_gating.pt."""
    return {
        name: torch.from_numpy(draw(f"trol_gating.{name}", distribution, seed)).to(TORCH_DTYPES[dtype])
        for name, distribution in gating_table(config).items()
    }


def split_into_shards(byte_counts: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Consecutive tensors per file; a tensor larger than `max_shard_bytes` gets a file of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, count in byte_counts.items():
        if shards[-1] and filled + count > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += count
    return shards


def write_shard(path: Path, config: Config, names: Sequence[str], seed: int, dtype: str) -> None:
    """One safetensors file, written tensor by tensor: the safetensors library would hold a whole 7B model in memory."""
    table, bytes_per_value = tensor_table(config), TORCH_DTYPES[dtype].itemsize
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + table[name].size * bytes_per_value
        shape = list(table[name].shape)
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            file.write(checkpoint_tensor(config, name, seed, dtype).view(torch.uint8).numpy().data)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def write_checkpoint(
    config: str | Mapping[str, Any],
    directory: str | Path,
    seed: int = 0,
    dtype: str = "fp32",
    max_shard_bytes: int = 2_000_000_000,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Write an official-format checkpoint into `directory`, made if need be, and return it.

    config: a name of CONFIGS, or a dict as `read_config` takes; `overrides` are merged into it recursively.
    dtype: "fp32", "fp16" or "bf16", of every tensor.
    """
    full, directory = read_config(config, overrides), Path(directory)
    byte_counts = {name: entry.size * TORCH_DTYPES[dtype].itemsize for name, entry in tensor_table(full).items()}
    shards = split_into_shards(byte_counts, max_shard_bytes)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config_json(full))
    if len(shards) == 1:
        write_shard(directory / "model.safetensors", full, shards[0], seed, dtype)
    else:
        files = {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, start=1)}
        for file_name, names in files.items():
            write_shard(directory / file_name, full, names, seed, dtype)
        weight_map = {name: file_name for file_name, names in files.items() for name in names}
        index = {"metadata": {"total_size": sum(byte_counts.values())}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)
    torch.save(gating_tensors(full, seed, dtype), directory / "trol_gating.pt")
    return directory


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write an official-format TroL checkpoint with seeded random weights.")
    parser.add_argument("config", help=f'{", ".join(CONFIGS)}, or a JSON file {{"base": NAME, ...differences}}')
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=TORCH_DTYPES, default="fp32")
    parser.add_argument("--max-shard-bytes", type=int, default=2_000_000_000)
    arguments = parser.parse_args(argv)
    if arguments.config in CONFIGS:
        config: Config = CONFIGS[arguments.config]
    elif Path(arguments.config).is_file():
        config = json.loads(Path(arguments.config).read_text())
    else:
        parser.error(f"no config or JSON file '{arguments.config}'; the configs are {', '.join(CONFIGS)}")
    write_checkpoint(config, arguments.directory, arguments.seed, arguments.dtype, arguments.max_shard_bytes)


if __name__ == "__main__":
    main()
