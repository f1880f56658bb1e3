"""The golden data is complete and small, and the seeded checkpoints are those the official code ran on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from golden.golden import FOLDER, Golden, digest
from golden.seeded_checkpoint import (
    CONFIGS,
    DISTINCT_INTERNLM2,
    checkpoint_tensor,
    config_json,
    gating_table,
    gating_tensors,
    main,
    read_config,
    tensor_table,
    write_checkpoint,
)

RECORDED: dict[str, dict[str, Any]] = json.loads((FOLDER / "seeded_checkpoint_digests.json").read_text())
SMALL = [name for name in CONFIGS if name.startswith(("tiny", "distinct", "micro"))]


def sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy()


@pytest.fixture(params=["internlm2", "phi3"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return request.getfixturevalue(f"golden_{request.param}")


# The data


def test_the_folder_stays_below_10_mb() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 10_000_000


def test_every_kind_of_official_output_is_there(golden: Golden) -> None:
    for case in ("img", "text"):
        for name in ("input_ids", "inputs_embeds", "final_norm", "prefill_logits_last"):
            assert f"{case}/{name}" in golden
        for name in ("greedy_tokens", "greedy_logits"):
            assert f"{case}/{name}" in golden
        for name in ("tokens", "score", "eos_token_id", "eos_tokens", "eos_score"):
            assert f"{case}/beam5/{name}" in golden
        for layer in range(3):
            for name in ("x1", "x2", "gate", "mixed", "key_cache", "value_cache"):
                assert f"{case}/layer{layer}/{name}" in golden
            for name in ("key_decode", "value_decode", "x_decode"):
                assert f"{case}/layer{layer}/{name}" in golden
    for batch in ("batch2", "batch2text"):
        for row in (0, 1):
            assert f"{batch}/row{row}_alone/greedy_tokens" in golden
            assert f"{batch}/row{row}_alone/greedy_logits" in golden
    for picture in golden.spec["images"]:
        for name in ("source", "pixel_values_stride7", "vision_features", "projected"):
            assert f"image/{picture}/{name}" in golden
    assert "img/stop/tokens" in golden


def test_pictures_have_the_size_the_spec_says(golden: Golden) -> None:
    for picture, (height, width) in golden.spec["images"].items():
        source = golden[f"image/{picture}/source"]
        assert (source.shape, source.dtype) == ((height, width, 3), np.uint8)


def test_the_text_case_is_whole(golden: Golden) -> None:
    assert not [name for name in golden.thinnings if name.startswith("text/")]
    assert golden["text/layer0/x1"].shape[1] == golden["text/input_ids"].shape[1]


def test_a_thinned_tensor_keeps_the_text_and_the_borders_of_the_picture(golden: Golden) -> None:
    kept, is_image = golden["img/kept_positions"], golden["img/im_mask"][0].astype(bool)
    image = np.flatnonzero(is_image)
    assert set(np.flatnonzero(~is_image)) <= set(kept)
    assert {image[0], image[-1]} <= set(kept)
    assert np.diff(kept).max() <= 9


def test_thin_takes_from_a_full_tensor_what_the_golden_one_kept(golden: Golden) -> None:
    """`mixed` is thinned and `gate` is whole: the mix of the thinned passes must come out."""
    gate = golden.thin("img/layer1/x1", golden["img/layer1/gate"])
    x1, x2 = golden["img/layer1/x1"], golden["img/layer1/x2"]
    np.testing.assert_allclose(x1 * (1 - gate) + x2 * gate, golden["img/layer1/mixed"], atol=1e-5)  # fp32 rounding
    assert golden.thin("img/layer1/gate", gate) is gate


def test_image_rows_of_the_embeddings_are_the_projected_features(golden: Golden) -> None:
    """Ties the positions kept of two differently thinned tensors to each other."""
    image_rank = np.cumsum(golden["img/im_mask"][0]) - 1
    embeds, projected = golden["img/inputs_embeds"][0], golden["image/a/projected"]
    tokens = {
        crop * tokens_per_crop(golden) + token: projected[crop, row]
        for crop in range(len(projected))
        for row, token in enumerate(golden["image/a/kept_tokens"])
    }
    compared = 0
    for row, position in enumerate(golden["img/kept_positions"]):
        if golden["img/im_mask"][0, position] and image_rank[position] in tokens:
            np.testing.assert_array_equal(embeds[row], tokens[image_rank[position]])
            compared += 1
    assert compared >= 2  # at least the first and the last token of the picture


def tokens_per_crop(golden: Golden) -> int:
    return int(golden["img/im_mask"].sum()) // len(golden["image/a/projected"])


def test_digest_tells_shape_dtype_and_order_apart() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert digest(values)["shape"] == [2, 3]
    assert digest(values)["dtype"] == "uint8"
    assert digest(np.asfortranarray(values)) == digest(values)
    assert digest(values.T)["sha256"] != digest(values)["sha256"]


def test_digests_cover_the_bit_exact_tensors(golden_digests: dict[str, dict[str, Any]]) -> None:
    assert golden_digests["internlm2"]["image/a/resized_u8"]["shape"] == [3, 490, 490]
    assert golden_digests["phi3"]["image/a/tiles_u8"]["shape"] == [3, 3, 448, 448]


def test_prompts_cover_both_architectures(golden_prompts: dict[str, Any]) -> None:
    assert {"internlm2", "phi3"} <= set(golden_prompts)


# The checkpoints


@pytest.mark.parametrize("name", CONFIGS)
def test_config_names_and_shapes_are_those_of_the_recorded_writer(name: str) -> None:
    config = CONFIGS[name]
    table = [*tensor_table(config).items(), *gating_table(config).items()]
    shapes = [[tensor, list(distribution.shape)] for tensor, distribution in table]
    assert sha256(json.dumps(config_json(config), sort_keys=True).encode()) == RECORDED[name]["config_json"]
    assert sha256(json.dumps(shapes).encode()) == RECORDED[name]["shapes"]


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_are_those_of_the_recorded_writer_bit_for_bit(name: str) -> None:
    for stored_as, tensors in RECORDED[name]["tensors"].items():
        dtype, _, seed = stored_as.split()
        for tensor, recorded in tensors.items():
            values = checkpoint_tensor(CONFIGS[name], tensor, int(seed), dtype)
            assert sha256(tensor_bytes(values)) == recorded, f"{tensor} as {stored_as}"


@pytest.mark.parametrize("name", CONFIGS)
def test_gates_are_those_of_the_recorded_writer_bit_for_bit(name: str) -> None:
    gates = gating_tensors(CONFIGS[name])
    for tensor, recorded in RECORDED[name]["gating"].items():
        assert sha256(tensor_bytes(gates[tensor])) == recorded, tensor


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["micro-internlm2", "micro-phi3"])
def test_the_file_holds_the_table_at_the_dtype_asked_for(name: str, dtype: str, tmp_path: Path) -> None:
    directory = write_checkpoint(name, tmp_path / "checkpoint", seed=3, dtype=dtype)
    written = load_file(directory / "model.safetensors")
    assert set(written) == set(tensor_table(CONFIGS[name]))
    for tensor, values in written.items():
        expected = checkpoint_tensor(CONFIGS[name], tensor, seed=3, dtype=dtype)
        assert values.dtype == expected.dtype
        assert torch.equal(values, expected)
    gates = torch.load(directory / "trol_gating.pt", weights_only=True)
    assert {tensor: values.dtype for tensor, values in gates.items()} == dict.fromkeys(gates, expected.dtype)
    assert list(gates) == list(gating_table(CONFIGS[name]))


def test_shards_hold_the_same_tensors_as_one_file(tmp_path: Path) -> None:
    whole = load_file(write_checkpoint("micro-phi3", tmp_path / "whole") / "model.safetensors")
    directory = write_checkpoint("micro-phi3", tmp_path / "sharded", max_shard_bytes=50_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in whole.values())
    assert len(set(index["weight_map"].values())) > 1
    assert not (directory / "model.safetensors").exists()
    sharded = {}
    for file_name in sorted(set(index["weight_map"].values())):
        with safe_open(directory / file_name, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118  (a handle, not a dict)
                assert index["weight_map"][tensor] == file_name
                sharded[tensor] = file.get_tensor(tensor)
    assert sharded.keys() == whole.keys()
    assert all(torch.equal(sharded[tensor], whole[tensor]) for tensor in whole)


def test_overrides_merge_key_by_key_and_a_dict_may_name_its_base() -> None:
    overrides = {"llm": {"num_hidden_layers": 1}, "zero_pad_row": True}
    config = read_config("tiny-internlm2", overrides)
    assert config["llm"]["num_hidden_layers"] == 1
    assert config["llm"]["hidden_size"] == CONFIGS["tiny-internlm2"]["llm"]["hidden_size"]
    assert read_config({"base": "tiny-internlm2", **overrides}) == config
    assert read_config("tiny-internlm2", DISTINCT_INTERNLM2) == CONFIGS["distinct-internlm2"]
    assert CONFIGS["tiny-internlm2"]["llm"]["num_hidden_layers"] == 3


def test_the_pad_row_is_zero_when_asked_for() -> None:
    config = read_config("micro-internlm2", {"zero_pad_row": True})
    embeddings = checkpoint_tensor(config, "model.tok_embeddings.weight")
    assert not embeddings[2].any()
    assert embeddings[[0, 1, 3]].any(dim=1).all()


def sizes(config: dict[str, Any]) -> dict[str, int]:
    """Every size a graph could mistake for another, by name."""
    llm, vision = config["llm"], config.get("clip") or config["vit"]
    heads, kv_heads = llm["num_attention_heads"], llm["num_key_value_heads"]
    head_dim, vision_head_dim = (part["hidden_size"] // part["num_attention_heads"] for part in (llm, vision))
    grid = vision["image_size"] // vision["patch_size"]
    common = {
        "hidden": llm["hidden_size"],
        "intermediate": llm["intermediate_size"],
        "layers": llm["num_hidden_layers"],
        "heads": heads,
        "kv heads": kv_heads,
        "heads per kv head": heads // kv_heads,
        "rows per kv head": heads // kv_heads + 2,
        "head blocks": heads + 2 * kv_heads,
        "head dim": head_dim,
        "rotated pairs": head_dim // 2,
        "kv width": kv_heads * head_dim,
        "qkv rows": (heads + 2 * kv_heads) * head_dim,
        "vocabulary": llm["vocab_size"],
        "channels": vision["num_channels"],
        "vision width": vision["hidden_size"],
        "vision intermediate": vision["intermediate_size"],
        "vision layers": vision["num_hidden_layers"],
        "vision heads": vision["num_attention_heads"],
        "vision head dim": vision_head_dim,
        "patch": vision["patch_size"],
        "patch values": vision["num_channels"] * vision["patch_size"] ** 2,
        "grid": grid,
        "patches": grid**2,
        "positions": grid**2 + 1,
        "image": vision["image_size"],
    }
    if config["arch"] == "internlm2":
        return common | {"LoRA rank": config["lora_r"], "embedding rows": llm["vocab_size"] + 1}
    return common | {
        "gate and up rows": 2 * llm["intermediate_size"],
        "vision qkv rows": 3 * vision["hidden_size"],
        "shuffled width": 4 * vision["hidden_size"],
        "shuffled grid": grid // 2,
        "tokens": (grid // 2) ** 2,
    }


@pytest.mark.parametrize("name", ["distinct-internlm2", "distinct-phi3"])
def test_no_two_sizes_of_the_distinct_configs_are_equal(name: str) -> None:
    by_size: dict[int, list[str]] = {}
    for label, size in sizes(CONFIGS[name]).items():
        by_size.setdefault(size, []).append(label)
    assert [labels for labels in by_size.values() if len(labels) > 1] == []


@pytest.mark.parametrize("name", SMALL)
def test_sizes_divide_as_the_architecture_needs(name: str) -> None:
    config = CONFIGS[name]
    llm, vision = config["llm"], config.get("clip") or config["vit"]
    assert llm["hidden_size"] % (2 * llm["num_attention_heads"]) == 0
    assert llm["num_attention_heads"] % llm["num_key_value_heads"] == 0
    assert vision["hidden_size"] % vision["num_attention_heads"] == 0
    assert vision["image_size"] % vision["patch_size"] == 0
    if config["arch"] == "phi3":
        assert vision["image_size"] // vision["patch_size"] % 2 == 0
        assert config["top"]["force_image_size"] == vision["image_size"]
        rope = llm["rope_scaling"]
        pairs = llm["hidden_size"] // llm["num_attention_heads"] // 2
        assert [len(rope["short_factor"]), len(rope["long_factor"])] == [pairs, pairs]


def test_the_file_runs_as_a_program(tmp_path: Path) -> None:
    program = [sys.executable, str(FOLDER / "seeded_checkpoint.py")]
    subprocess.run([*program, "micro-internlm2", str(tmp_path / "out"), "--dtype", "fp16"], check=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["output.weight"].dtype == torch.float16


def test_the_command_takes_a_json_file_of_differences(tmp_path: Path) -> None:
    differences = tmp_path / "shallow.json"
    differences.write_text(json.dumps({"base": "micro-phi3", "llm": {"num_hidden_layers": 1}}))
    main([str(differences), str(tmp_path / "out")])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["llm_config"]["num_hidden_layers"] == 1


def test_the_command_names_the_configs_when_one_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["2b", str(tmp_path / "out")])
    assert "no config or JSON file '2b'; the configs are tiny-internlm2, tiny-phi3," in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_session_fixtures_hold_complete_checkpoints(tiny_internlm2: Path, tiny_phi3: Path) -> None:
    for directory in (tiny_internlm2, tiny_phi3):
        names = {path.name for path in directory.iterdir()}
        assert names == {"config.json", "model.safetensors", "trol_gating.pt"}
