"""A complete engine file of 150 kilobytes whose graphs are not graphs: for tests of the file format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trol_export.arena import ArenaLayout, plan_arena, stream_arena
from trol_export.weight_files import TensorInfo
from trol_runtime.bundle_writer import BundleWriter
from trol_runtime.manifest import GraphEntry, GraphValue, Limits, Manifest, PlanEntry, TensorEntry
from trol_runtime.model_config import ClipVision, Decoder, ModelConfig, Rope
from trol_runtime.prompt import official_template

# No two sizes are equal.
SMALL_MODEL = ModelConfig(
    arch="internlm2",
    vision=ClipVision(
        hidden_size=12, intermediate_size=20, layers=2, heads=3, patch_size=14, grid=5, layer_norm_eps=1e-5
    ),
    decoder=Decoder(
        hidden_size=32,
        intermediate_size=44,
        layers=6,
        heads=8,
        kv_heads=4,
        vocab_size=601,
        embedding_rows=602,
        rms_norm_eps=1e-6,
        rope=Rope(theta=1e6),
        max_positions=4096,
        lora_rank=7,
    ),
    image_token_id=601,
    eos_token_ids=(2, 600),
    bos_token_id=1,
    pad_token_id=0,
)

SMALL_WEIGHTS: dict[str, np.ndarray] = {
    "norm.weight": np.arange(9, dtype=np.float16),
    "head.weight": np.arange(601 * 32, dtype=np.float32).reshape(601, 32),
}

SMALL_ENTRIES = {"graphs/prefill.onnx": b"prefill", "graphs/decode.onnx": b"decode" * 5, "tokenizer.json": b"{}"}


def small_layout() -> ArenaLayout:
    names = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}
    return plan_arena(TensorInfo(name, names[array.dtype], array.shape) for name, array in SMALL_WEIGHTS.items())


def small_source(name: str) -> Iterator[memoryview]:
    yield SMALL_WEIGHTS[name].data


def small_manifest() -> Manifest:
    layout = small_layout()
    logits = GraphValue("logits", "float32", (1, 601))
    return Manifest(
        producer={"trol-export": "0.1.0", "torch": "2.13.0"},
        model=SMALL_MODEL,
        precision="fp32",
        limits=Limits(max_seq=128, max_batch=5),
        tensors={t.name: TensorEntry(t.dtype, t.dtype, t.shape, layout.offsets[t.name]) for t in layout.tensors},
        graphs={
            "prefill": GraphEntry("graphs/prefill.onnx", (GraphValue("input_ids", "int64", (1, "seq")),), (logits,)),
            "decode": GraphEntry("graphs/decode.onnx", (GraphValue("input_ids", "int64", ("batch",)),), (logits,)),
        },
        plans=(
            PlanEntry(
                "cpu", "x86_64", ("prefill", "decode"), "fp32", ("graphs/decode.onnx",), {"onnxruntime": "1.31.1"}
            ),
        ),
        prompt=official_template("internlm2"),
        generation={"eos_token_id": [2, 600]},
        parity={
            "verdict": "pass",
            "outputs": [
                {
                    "output": "prefill logits",
                    "max_abs_diff": 0.00012,
                    "limit": 0.001,
                    "cosine": 0.99999,
                    "verdict": "pass",
                },
                {"output": "decode logits", "max_abs_diff": 0.0, "limit": 0.001, "cosine": 1.0, "verdict": "pass"},
            ],
        },
        fp16_range={
            "limit": 65504,
            "activations": [{"part": "layers.0", "max_abs": 12.5}, {"part": "layers.1", "max_abs": 431.0}],
        },
    )


def write_small_engine(path: Path, manifest: Manifest | None = None) -> Path:
    """Write the engine file `path` and return the path."""
    layout = small_layout()
    with BundleWriter(path) as writer:
        for name, data in SMALL_ENTRIES.items():
            writer.add(name, data)
        writer.add_arena(layout, stream_arena(layout, small_source))
        writer.finish(manifest or small_manifest())
    return path
