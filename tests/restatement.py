"""The official forward pass written down a second time: plain numpy in float64, heads and tokens one by one.

It shares nothing with trol_graphs or trol_runtime: sizes are the keys of config.json, weights go by the checkpoint's
names. Where the model traverses, shuffles or interleaves, this says so in loops and indices rather than in reshapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray
Config = dict[str, Any]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    """The exact one."""
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + bias


def rotate(x: Array, frequencies: Array, position: int, scale: float) -> Array:
    """Half-split rotation of one head at one position: (a, b) -> (a cos - b sin, b cos + a sin)."""
    half = len(x) // 2
    a, b = x[:half], x[half:]
    cos, sin = np.cos(position * frequencies) * scale, np.sin(position * frequencies) * scale
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])


@dataclass
class Traversal:
    """What a prompt's forward pass leaves behind, per layer where it says so; gate (tokens, 1)."""

    x1: list[Array] = field(default_factory=list)
    x2: list[Array] = field(default_factory=list)
    gate: list[Array] = field(default_factory=list)
    mixed: list[Array] = field(default_factory=list)
    inputs_embeds: Array = field(default_factory=lambda: np.zeros(0))
    logits: Array = field(default_factory=lambda: np.zeros(0))  # (tokens, vocab)


class Restatement:
    """One sequence on one model.

    keys, values: of the first pass, per layer a list of (kv heads, d), one entry per position
    second_keys, second_values: of the second pass over the last prompt; the official code forgets them
    """

    def __init__(self, config: Config, tensor: Callable[[str], Array]) -> None:
        self.config, self.llm = config, config["llm"]
        self.weights: dict[str, Array] = {}
        self.read = tensor
        self.internlm2 = config["arch"] == "internlm2"
        self.trunk = "model." if self.internlm2 else "language_model.model."
        self.heads, self.kv_heads = self.llm["num_attention_heads"], self.llm["num_key_value_heads"]
        self.d = self.llm["hidden_size"] // self.heads
        self.image_token = self.llm["image_token_index"] if self.internlm2 else config["top"]["image_token_index"]
        self.keys: list[list[Array]] = []
        self.values: list[list[Array]] = []
        self.second_keys: list[list[Array]] = []
        self.second_values: list[list[Array]] = []

    def __getitem__(self, name: str) -> Array:
        if name not in self.weights:
            self.weights[name] = self.read(name).astype(np.float64)
        return self.weights[name]

    # The language model

    def prompt(self, ids: Array, image_embeds: Array | None = None) -> Traversal:
        """A fresh prompt of one row, every layer twice; a prompt of one token runs every layer once."""
        layers = self.llm["num_hidden_layers"]
        self.keys, self.values = [[] for _ in range(layers)], [[] for _ in range(layers)]
        self.second_keys, self.second_values = [[] for _ in range(layers)], [[] for _ in range(layers)]
        table = self[self.trunk + ("tok_embeddings.weight" if self.internlm2 else "embed_tokens.weight")]
        x = table[ids]
        is_image = ids == self.image_token
        if image_embeds is not None:
            x[is_image] = image_embeds
        trace = Traversal(inputs_embeds=x.copy())
        positions, length = np.arange(len(ids)), len(ids)
        for i in range(layers):
            x1, k, v = self.layer(i, x, is_image, positions, length, [], [])
            self.keys[i], self.values[i] = k, v
            if len(ids) == 1:
                x = x1
                continue
            x2, k, v = self.layer(i, x1, is_image, positions, length, [], [])
            self.second_keys[i], self.second_values[i] = k, v
            gate = 0.5 * np.tanh(x1 @ self["trol_gating.weight"][0] + self["trol_gating.bias"]) + 0.5
            x = np.stack([a * (1 - s) + b * s for a, b, s in zip(x1, x2, gate, strict=True)])
            trace.x1.append(x1)
            trace.x2.append(x2)
            trace.gate.append(gate[:, None])
            trace.mixed.append(x)
        trace.logits = self.logits(x)
        return trace

    def step(self, token: int) -> Array:
        """One more token, every layer once -> (vocab,)"""
        table = self[self.trunk + ("tok_embeddings.weight" if self.internlm2 else "embed_tokens.weight")]
        x, position = table[[token]], len(self.keys[0])
        for i, (past_keys, past_values) in enumerate(zip(self.keys, self.values, strict=True)):
            no_image = np.array([False])
            x, k, v = self.layer(i, x, no_image, np.array([position]), position + 1, past_keys, past_values)
            past_keys += k
            past_values += v
        return self.logits(x)[0]

    def logits(self, x: Array) -> Array:
        head = "output.weight" if self.internlm2 else "language_model.lm_head.weight"
        return rms_norm(x, self[self.trunk + "norm.weight"], self.llm["rms_norm_eps"]) @ self[head].T

    def layer(
        self, i: int, x: Array, is_image: Array, positions: Array, length: int, past_keys: list, past_values: list
    ) -> tuple[Array, list[Array], list[Array]]:
        """One pass: x (tokens, hidden) -> the same, and this call's keys (rotated) and values."""
        p, eps = f"{self.trunk}layers.{i}.", self.llm["rms_norm_eps"]
        norms = ("attention_norm", "ffn_norm") if self.internlm2 else ("input_layernorm", "post_attention_layernorm")
        normed = rms_norm(x, self[f"{p}{norms[0]}.weight"], eps)
        q, k, v = (self.internlm2_qkv if self.internlm2 else self.phi3_qkv)(p, normed, is_image)
        frequencies, scale = self.rope(length)
        q, k = (
            [
                np.stack([rotate(head, frequencies, n, scale) for head in row])
                for row, n in zip(x, positions, strict=True)
            ]
            for x in (q, k)
        )
        v = [np.stack(row) for row in v]
        attended = self.attend(q, past_keys + k, past_values + v, offset=len(past_keys))
        if self.internlm2:
            x = x + self.partial_lora(f"{p}attention.wo", attended, is_image)
            x = x + self.internlm2_mlp(p, rms_norm(x, self[f"{p}{norms[1]}.weight"], eps), is_image)
        else:
            x = x + attended @ self[f"{p}self_attn.o_proj.weight"].T
            both = rms_norm(x, self[f"{p}{norms[1]}.weight"], eps) @ self[f"{p}mlp.gate_up_proj.weight"].T
            gate, up = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
            x = x + (up * silu(gate)) @ self[f"{p}mlp.down_proj.weight"].T
        return x, k, v

    def attend(self, q: list, keys: list[Array], values: list[Array], offset: int) -> Array:
        """Query head j reads key/value head j // (heads / kv_heads); position n sees positions 0 to n."""
        rows = []
        for n, heads in enumerate(q):
            seen = offset + n + 1
            k, v = np.stack(keys[:seen]), np.stack(values[:seen])  # (seen, kv heads, d)
            outs = []
            for j, head in enumerate(heads):
                g = j // (self.heads // self.kv_heads)
                outs.append(softmax(k[:, g] @ head / math.sqrt(self.d)) @ v[:, g])
            rows.append(np.concatenate(outs))
        return np.stack(rows)

    def partial_lora(self, name: str, x: Array, is_image: Array) -> Array:
        """y = W x (+ bias); image tokens, and no others, add B (A x)."""
        y = x @ self[f"{name}.ffn.weight"].T
        if self.llm["bias"] and "attention" in name:
            y = y + self[f"{name}.ffn.bias"]
        for row in np.flatnonzero(is_image):
            y[row] += self[f"{name}.lora_B.weight"] @ (self[f"{name}.lora_A.weight"] @ x[row])
        return y

    def internlm2_qkv(self, p: str, x: Array, is_image: Array) -> tuple[list, list, list]:
        """wqkv's rows: per kv head its query heads, then its key head, then its value head, d rows each."""
        rows = self.partial_lora(f"{p}attention.wqkv", x, is_image)
        per_group = self.heads // self.kv_heads

        def block(group: int, within: int) -> slice:
            start = (group * (per_group + 2) + within) * self.d
            return slice(start, start + self.d)

        queries = [block(j // per_group, j % per_group) for j in range(self.heads)]
        keys = [block(g, per_group) for g in range(self.kv_heads)]
        values = [block(g, per_group + 1) for g in range(self.kv_heads)]
        q, k, v = ([[row[b] for b in blocks] for row in rows] for blocks in (queries, keys, values))
        return q, k, v

    def phi3_qkv(self, p: str, x: Array, is_image: Array) -> tuple[list, list, list]:
        """qkv_proj's rows: all query heads, all key heads, all value heads."""
        rows = x @ self[f"{p}self_attn.qkv_proj.weight"].T
        starts = np.cumsum([0, self.heads, self.kv_heads, self.kv_heads])
        q, k, v = (
            [[row[head * self.d : (head + 1) * self.d] for head in range(first, last)] for row in rows]
            for first, last in pairwise(starts)
        )
        return q, k, v

    def internlm2_mlp(self, p: str, x: Array, is_image: Array) -> Array:
        w1, w3 = (self.partial_lora(f"{p}feed_forward.{w}", x, is_image) for w in ("w1", "w3"))
        return self.partial_lora(f"{p}feed_forward.w2", silu(w1) * w3, is_image)

    def rope(self, length: int) -> tuple[Array, float]:
        """Inverse frequencies and the tables' scale for a call after which the row holds `length` tokens."""
        plain = [self.llm["rope_theta"] ** (-2 * i / self.d) for i in range(self.d // 2)]
        scaling = self.llm.get("rope_scaling")
        if not scaling or scaling["type"] == "dynamic":
            return np.array(plain), 1.0
        original, longest = self.llm["original_max_position_embeddings"], self.llm["max_position_embeddings"]
        factors = scaling["long_factor"] if length > original else scaling["short_factor"]
        stretch = longest / original
        if stretch <= 1:
            scale = 1.0
        elif scaling["type"] == "su":
            scale = math.sqrt(1 + math.log(stretch) / math.log(original))
        else:  # yarn
            scale = 0.1 * math.log(stretch) + 1
        return np.array([f / factor for f, factor in zip(plain, factors, strict=True)]), scale

    # Vision

    def features(self, pixels: Array) -> Array:
        """(crops, 3, h, w) -> what the projector reads, (crops, tokens, features)"""
        tower = self.clip if self.internlm2 else self.internvit
        return np.stack([tower(crop.astype(np.float64)) for crop in pixels])

    def project(self, x: Array) -> Array:
        """Features (crops, tokens, features) -> image embeddings (crops, tokens, hidden)"""
        first = 0
        if not self.internlm2:
            x, first = layer_norm(x, self["vision_proj.0.weight"], self["vision_proj.0.bias"], 1e-5), 1
        x = gelu(x @ self[f"vision_proj.{first}.weight"].T + self[f"vision_proj.{first}.bias"])
        return x @ self[f"vision_proj.{first + 2}.weight"].T + self[f"vision_proj.{first + 2}.bias"]

    def clip(self, crop: Array) -> Array:
        clip, p = self.config["clip"], "vit.vision_tower.vision_model."
        patches = patch_embedding(crop, self[p + "embeddings.patch_embedding.weight"])
        x = np.vstack([self[p + "embeddings.class_embedding"], patches])
        x = x + self[p + "embeddings.position_embedding.weight"]
        eps = clip["layer_norm_eps"]

        def norm(name: str, x: Array) -> Array:
            return layer_norm(x, self[f"{name}.weight"], self[f"{name}.bias"], eps)

        def linear(name: str, x: Array) -> Array:
            return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

        x = norm(p + "pre_layrnorm", x)
        for i in range(clip["num_hidden_layers"]):
            layer = f"{p}encoder.layers.{i}."
            normed = norm(layer + "layer_norm1", x)
            q, k, v = (linear(f"{layer}self_attn.{name}_proj", normed) for name in "qkv")
            x = x + linear(layer + "self_attn.out_proj", full_attention(q, k, v, clip["num_attention_heads"]))
            inner = linear(layer + "mlp.fc1", norm(layer + "layer_norm2", x))
            x = x + linear(layer + "mlp.fc2", inner / (1 + np.exp(-1.702 * inner)))
        return x[1:]

    def internvit(self, crop: Array) -> Array:
        vit, p = self.config["vit"], "vision_model."
        eps = vit["layer_norm_eps"]
        patches = patch_embedding(crop, self[p + "embeddings.patch_embedding.weight"])
        patches = patches + self[p + "embeddings.patch_embedding.bias"]
        x = np.vstack([self[p + "embeddings.class_embedding"][0], patches])
        x = x + self[p + "embeddings.position_embedding"][0]

        def norm(name: str, x: Array) -> Array:
            if vit["norm_type"] == "rms_norm":
                return rms_norm(x, self[f"{name}.weight"], eps)
            return layer_norm(x, self[f"{name}.weight"], self[f"{name}.bias"], eps)

        for i in range(vit["num_hidden_layers"]):
            layer = f"{p}encoder.layers.{i}."
            qkv = norm(layer + "norm1", x) @ self[layer + "attn.qkv.weight"].T
            if vit["qkv_bias"]:
                qkv = qkv + self[layer + "attn.qkv.bias"]
            width = vit["hidden_size"]
            q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
            if vit["qk_normalization"]:
                q, k = (rms_norm(y, self[f"{layer}attn.{n}_norm.weight"], eps) for n, y in (("q", q), ("k", k)))
            attended = full_attention(q, k, v, vit["num_attention_heads"])
            attended = attended @ self[layer + "attn.proj.weight"].T + self[layer + "attn.proj.bias"]
            x = x + self[layer + "ls1"] * attended
            inner = gelu(norm(layer + "norm2", x) @ self[layer + "mlp.fc1.weight"].T + self[layer + "mlp.fc1.bias"])
            x = x + self[layer + "ls2"] * (inner @ self[layer + "mlp.fc2.weight"].T + self[layer + "mlp.fc2.bias"])
        return pixel_shuffle_v2(x[1:])


def patch_embedding(crop: Array, weight: Array) -> Array:
    """(3, h, w), (width, 3, p, p) -> (patches, width), row-major."""
    p = weight.shape[-1]
    rows, columns = crop.shape[1] // p, crop.shape[2] // p
    patches = [crop[:, r * p : (r + 1) * p, c * p : (c + 1) * p] for r in range(rows) for c in range(columns)]
    return np.stack([(weight * patch).sum((1, 2, 3)) for patch in patches])


def full_attention(q: Array, k: Array, v: Array, heads: int) -> Array:
    d = q.shape[1] // heads
    parts = [slice(head * d, (head + 1) * d) for head in range(heads)]
    return np.hstack([softmax((q[:, s] * d**-0.5) @ k[:, s].T) @ v[:, s] for s in parts])


def pixel_shuffle_v2(x: Array) -> Array:
    """out[r, c, (dr * 2 + dc) * C + k] = in[2 r + dr, 2 c + dc, k], tokens row-major; (grid * grid, C)."""
    grid, channels = math.isqrt(len(x)), x.shape[1]
    out = np.zeros((grid // 2, grid // 2, 4 * channels))
    for r in range(grid // 2):
        for c in range(grid // 2):
            for dr in range(2):
                for dc in range(2):
                    start = (dr * 2 + dc) * channels
                    out[r, c, start : start + channels] = x[(2 * r + dr) * grid + 2 * c + dc]
    return out.reshape(-1, 4 * channels)
