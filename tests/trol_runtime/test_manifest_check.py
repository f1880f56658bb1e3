"""A manifest whose numbers no engine has is refused by the key that is wrong, before anything is laid out by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import EngineOf
from small_engine import small_manifest, write_small_engine
from trol_runtime.bundle import Bundle
from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.errors import EngineFileError
from trol_runtime.manifest import GraphEntry, GraphValue, Manifest
from trol_runtime.manifest_check import require_possible
from trol_runtime.prompt import Arch


def with_value(manifest: Manifest, path: str, value: Any) -> Manifest:
    """The manifest with the value at a dotted path replaced."""
    values = manifest.to_json()
    *parents, key = path.split(".")
    place: Any = values
    for parent in parents:
        place = place[parent]
    place[key] = value
    return dataclass_from_json(Manifest, as_json(values))


def as_json(value: Any) -> Any:
    """Tuples as the lists that they are in a file."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def refusal(manifest: Manifest) -> str:
    with pytest.raises(EngineFileError) as caught:
        require_possible(manifest)
    return str(caught.value)


@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_what_the_exporter_writes_is_possible(arch: Arch, micro_engine: EngineOf) -> None:
    require_possible(Bundle.open(micro_engine(arch)).manifest)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("model.decoder.layers", 2**31, "'model.decoder.layers' is 2147483648, expected 1 to 1000"),
        ("model.decoder.layers", 0, "'model.decoder.layers' is 0, expected 1 to 1000"),
        ("model.decoder.heads", 0, "'model.decoder.heads' is 0, expected 1 to 16777216"),
        ("model.decoder.lora_rank", -1, "'model.decoder.lora_rank' is -1, expected 0 to 16777216"),
        ("model.vision.grid", 10**30, f"'model.vision.grid' is {10**30}, expected 1 to 16777216"),
        ("model.vision.grid", 2000, "'model.vision' has 28000 pixels a side, expected 16384 or fewer"),
        ("model.decoder.rms_norm_eps", 0.0, "'model.decoder.rms_norm_eps' is 0.0, expected a number above 0"),
        ("model.image_token_id", 602, "'model.image_token_id' is 602, expected a row of the 602 in the "
         "embedding table"),
        ("model.pad_token_id", -1, "'model.pad_token_id' is -1, expected a row of the 602 in the embedding table"),
        ("model.eos_token_ids", [2, 2**64], f"'model.eos_token_ids[1]' is {2**64}, expected a row of the 602 in the "
         "embedding table"),
        ("model.decoder.rope.theta", -1.0, "'model.decoder.rope.theta' is -1.0, expected a number above 0"),
        ("model.decoder.rope.kind", "su", "'model.decoder.rope.short_factor' is not 2 numbers above 0"),
        ("limits.max_seq", 4097, "'limits.max_seq' is 4097, expected 1 to the model's 4096 positions"),
        ("limits.max_batch", 0, "'limits.max_batch' is 0, expected 1 to 16777216"),
        ("generation", {"max_new_tokens": "8"}, "'generation.max_new_tokens' is '8', expected a whole number, 1 or "
         "more"),
        ("prompt.turn_end", "", "'prompt.turn_end' is empty, expected a piece of the tokenizer"),
        ("prompt.marks", ["<s>", ""], "'prompt.marks' holds an empty text, expected pieces of the tokenizer"),
        ("prompt.image_piece", "x" * 257, "'prompt' has a piece of 257 characters, expected 256 or fewer"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_by_its_key(path: str, value: Any, problem: str) -> None:
    message = refusal(with_value(small_manifest(), path, value))
    assert message == f"manifest.json: {problem}; export the engine again"


def test_heads_that_do_not_divide_are_refused() -> None:
    message = refusal(with_value(small_manifest(), "model.decoder.heads", 7))
    assert "hidden_size 32, heads 7 and kv_heads 4 of 'model.decoder' do not divide each other" in message


@pytest.mark.parametrize(
    ("role", "value", "problem"),
    [
        ("vision", GraphValue("pixel_values", "float32", ("crops", 3, 16, 16)), "expected [3, 70, 70] at its end"),
        ("vision", GraphValue("image_embeds", "float32", ("crops", 25, 31)), "expected [25, 32] at its end"),
        ("prefill", GraphValue("logits", "float32", (1, 600)), "expected [601] at its end"),
        ("decode", GraphValue("cos", "float32", ()), "expected [2] at its end"),
        ("decode", GraphValue("present.0.key", "float32", (1, 4, "n", 8)), "expected [4] at its end"),
        ("decode", GraphValue("present.6.key", "float32", (1, 4, "n", 4)), "has 1 layers, expected the 6"),
    ],
)
def test_a_model_that_is_not_that_of_its_graphs_is_refused(role: str, value: GraphValue, problem: str) -> None:
    manifest = replace(small_manifest(), graphs={role: GraphEntry("graphs/prefill.onnx", (), (value,))})
    assert problem in refusal(manifest)


def test_an_engine_file_with_an_impossible_manifest_does_not_open(tmp_path: Path) -> None:
    path = write_small_engine(tmp_path / "engine.plan", with_value(small_manifest(), "model.decoder.layers", 10**9))
    with pytest.raises(EngineFileError) as caught:
        Bundle.open(path)
    assert str(caught.value) == (
        f"{path}: manifest.json: 'model.decoder.layers' is 1000000000, expected 1 to 1000; export the engine again"
    )
