"""A checkpoint directory: every official layout, bytes as stored, and every kind of damage named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from golden.seeded_checkpoint import CONFIGS, checkpoint_tensor, gating_tensors, tensor_table, write_checkpoint
from trol_export.checkpoint import Checkpoint, check_tensors, require_tensors
from trol_export.checkpoint_config import read_model_config
from trol_graphs.model import dead_tensors, expected_tensors
from trol_runtime.errors import CheckpointError, NumericError

MICRO = "micro-internlm2"

Damage = Callable[[Path], None]


@pytest.fixture
def micro(tmp_path: Path) -> Path:
    return write_checkpoint(MICRO, tmp_path / "micro")


def save_again(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / "model.safetensors")


def deviations(directory: Path) -> list[str]:
    checkpoint = Checkpoint.open(directory)
    model = read_model_config(checkpoint.config, checkpoint.generation, checkpoint.shapes)
    return check_tensors(checkpoint, expected_tensors(model), dead_tensors(model))


@pytest.mark.parametrize("config", ["micro-internlm2", "micro-phi3", "distinct-internlm2", "distinct-phi3"])
def test_a_seeded_checkpoint_is_read_whole_and_without_deviation(tmp_path: Path, config: str) -> None:
    directory = write_checkpoint(config, tmp_path / config, seed=5)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.tensors.keys() == {*tensor_table(CONFIGS[config]), "trol_gating.weight", "trol_gating.bias"}
    for name in tensor_table(CONFIGS[config]):
        assert torch.equal(checkpoint.torch(name), checkpoint_tensor(CONFIGS[config], name, seed=5))
    assert deviations(directory) == []


def test_the_last_layers_gate_is_the_gate(micro: Path) -> None:
    checkpoint = Checkpoint.open(micro)
    stored = gating_tensors(CONFIGS[MICRO])
    last = CONFIGS[MICRO]["llm"]["num_hidden_layers"] - 1
    assert torch.equal(checkpoint.torch("trol_gating.weight"), stored[f"{last}.weight"])
    assert torch.equal(checkpoint.torch("trol_gating.bias"), stored[f"{last}.bias"])
    assert not torch.equal(stored["0.weight"], stored[f"{last}.weight"])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_streams_hold_the_stored_values_in_fp32_and_rounded_in_fp16(tmp_path: Path, dtype: str) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(MICRO, tmp_path, dtype=dtype))
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert b"".join(checkpoint.stream(name, "F32")) == tensor.float().numpy().tobytes()
        assert b"".join(checkpoint.stream(name, "F16")) == tensor.float().half().numpy().tobytes()
        assert np.array_equal(checkpoint.numpy(name), tensor.float().numpy())


def test_shards_give_the_same_tensors_as_one_file(tmp_path: Path, micro: Path) -> None:
    sharded = Checkpoint.open(write_checkpoint(MICRO, tmp_path / "sharded", max_shard_bytes=60_000))
    assert len(list(sharded.directory.glob("model-*.safetensors"))) > 2
    whole = Checkpoint.open(micro)
    assert sharded.tensors == whole.tensors
    assert all(np.array_equal(sharded.numpy(name), whole.numpy(name)) for name in whole.tensors)


def test_torch_files_give_the_same_tensors_as_safetensors(tmp_path: Path, micro: Path) -> None:
    whole = Checkpoint.open(micro)
    tensors = load_file(micro / "model.safetensors")
    (micro / "model.safetensors").rename(tmp_path / "aside")
    torch.save(tensors, micro / "pytorch_model.bin")
    single = Checkpoint.open(micro)
    assert single.tensors == whole.tensors
    assert all(np.array_equal(single.numpy(name), tensors[name].numpy()) for name in tensors)

    (micro / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file_name, part in parts.items():
        torch.save({name: tensors[name] for name in part}, micro / file_name)
    weight_map = {name: file_name for file_name, part in parts.items() for name in part}
    (micro / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert Checkpoint.open(micro).tensors == whole.tensors


def test_a_nan_in_a_weight_stops_its_stream_and_no_other(micro: Path) -> None:
    tensors = load_file(micro / "model.safetensors")
    tensors["output.weight"][3, 4] = float("nan")
    save_again(micro, tensors)
    checkpoint = Checkpoint.open(micro)
    for name in checkpoint.tensors.keys() - {"output.weight"}:
        list(checkpoint.stream(name, "F16"))
    with pytest.raises(NumericError, match=r"model\.safetensors: tensor 'output\.weight' holds nan at \[3, 4\]"):
        list(checkpoint.stream("output.weight", "F16"))


def test_every_deviating_tensor_is_named_with_what_was_expected(micro: Path) -> None:
    tensors = load_file(micro / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["output.weight"] = torch.zeros(3, 4)
    tensors["vision_proj.0.bias"] = torch.zeros(32, dtype=torch.int8)
    tensors["model.layers.0.attention.rotary_emb.inv_freq"] = torch.zeros(4)
    tensors["surprise"] = torch.zeros(2, 2)
    save_again(micro, tensors)
    assert deviations(micro) == [
        "'model.norm.weight' is missing, expected [32]",
        "'surprise' [2, 2] is unexpected: no part of this model reads it",
        "'output.weight' is [3, 4], expected [320, 32]",
        "'vision_proj.0.bias' is I8, expected F32, F16 or BF16",
    ]


def test_dead_tensors_may_be_missing(micro: Path) -> None:
    tensors = load_file(micro / "model.safetensors")
    save_again(micro, {name: tensor for name, tensor in tensors.items() if "post_layernorm" not in name})
    assert deviations(micro) == []


def test_requiring_tensors_raises_one_line_with_the_first_deviations_and_the_count_of_the_others(micro: Path) -> None:
    tensors = load_file(micro / "model.safetensors")
    save_again(micro, {name: tensor for name, tensor in tensors.items() if "feed_forward" not in name})
    checkpoint = Checkpoint.open(micro)
    model = read_model_config(checkpoint.config, checkpoint.generation, checkpoint.shapes)
    missing = len(tensors) - len(checkpoint.tensors) + 2
    with pytest.raises(CheckpointError) as error:
        require_tensors(checkpoint, expected_tensors(model), dead_tensors(model))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(f"; and {missing - 5} more: list them with trol-export --check")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda gates: {**gates, "2.weight": gates["0.weight"]},
            "trol_gating.pt has 2.weight too, expected a weight and a bias for each of 2 layers",
            id="one too many",
        ),
        pytest.param(
            lambda gates: {name: gates[name] for name in gates if name != "0.bias"},
            "trol_gating.pt lacks 0.bias, expected a weight and a bias for each of 2 layers",
            id="one too few",
        ),
        pytest.param(
            lambda gates: {**gates, f"{'9' * 300}.weight": gates["0.weight"]},
            f"trol_gating.pt has {'9' * 300}.weight too, expected a weight and a bias for each of 2 layers",
            id="a layer of three hundred digits",
        ),
    ],
)
def test_the_gate_file_holds_exactly_one_gate_per_layer(micro: Path, change: Any, message: str) -> None:
    torch.save(change(gating_tensors(CONFIGS[MICRO])), micro / "trol_gating.pt")
    assert message in deviations(micro)


def test_a_gate_of_another_width_is_a_deviation(micro: Path) -> None:
    torch.save({f"{i}.{p}": torch.zeros(1, 33) for i in (0, 1) for p in ("weight", "bias")}, micro / "trol_gating.pt")
    assert deviations(micro) == [
        "'trol_gating.weight' is [1, 33], expected [1, 32]",
        "'trol_gating.bias' is [1, 33], expected [1]",
    ]


def remove(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def write(name: str, content: bytes) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return damage


def copy(name: str, other: str) -> Damage:
    return lambda directory: write(other, (directory / name).read_bytes())(directory)


def shard(change: Damage) -> Damage:
    """Damage done to the checkpoint written again in shards."""

    def damage(directory: Path) -> None:
        shutil.rmtree(directory)
        write_checkpoint(MICRO, directory, max_shard_bytes=60_000)
        change(directory)

    return damage


def edit_index(change: Callable[[dict[str, str]], Any]) -> Damage:
    def damage(directory: Path) -> None:
        index = directory / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return shard(damage)


DAMAGE = [
    pytest.param(remove("config.json"), "config.json is missing: expected a checkpoint's config.json", id="no config"),
    pytest.param(write("config.json", b"{"), "config.json is not JSON", id="config is not JSON"),
    pytest.param(write("config.json", b"[" * 100_000), "config.json is not JSON", id="config is nested deeply"),
    pytest.param(
        write("config.json", b"[1]"), "config.json holds a JSON list, expected an object", id="config is a list"
    ),
    pytest.param(write("generation_config.json", b"3"), "generation_config.json holds a JSON int", id="generation"),
    pytest.param(remove("model.safetensors"), "holds no weights: expected model.safetensors, ", id="no weights"),
    pytest.param(remove("trol_gating.pt"), "trol_gating.pt is missing: the gate is stored there", id="no gate"),
    pytest.param(write("trol_gating.pt", b"PK\x03\x04"), "cannot be read as a torch file", id="truncated gate"),
    pytest.param(write("model.safetensors", bytes(100)), "model.safetensors is damaged", id="zeros for weights"),
    pytest.param(
        shard(remove("model-00002-of-00004.safetensors")),
        "model-00002-of-00004.safetensors is missing: the index names it",
        id="no shard",
    ),
    pytest.param(
        edit_index(lambda weight_map: weight_map.update({"ghost": "model-00001-of-00004.safetensors"})),
        "model-00001-of-00004.safetensors lacks tensor 'ghost', which the index says it holds",
        id="ghost in the index",
    ),
    pytest.param(
        edit_index(lambda weight_map: weight_map.update({"output.weight": "../secret.safetensors"})),
        "names the shard '../secret.safetensors', expected a file name beside it",
        id="index leaves the directory",
    ),
    pytest.param(
        edit_index(lambda weight_map: weight_map.update({"output.weight": "x" * 5000})),
        "xxx', expected a file name beside it",
        id="name of a shard is too long for a file",
    ),
    pytest.param(
        edit_index(lambda weight_map: weight_map.update({"output.weight": "a\0b"})),
        "names the shard 'a\\x00b', expected a file name beside it",
        id="name of a shard holds a zero byte",
    ),
    pytest.param(
        edit_index(lambda weight_map: weight_map.update({"\x1b[2J": "model-00001-of-00004.safetensors"})),
        "lacks tensor '\\x1b[2J', which the index says it holds",
        id="control character in the index",
    ),
    pytest.param(
        shard(write("model.safetensors.index.json", b"{}")),
        "model.safetensors.index.json has no weight_map of tensor names to files",
        id="empty index",
    ),
    pytest.param(
        shard(copy("model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors")),
        "is also in model-00001-of-00004.safetensors, expected once",
        id="tensor in two shards",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_one_line_that_names_the_file(micro: Path, damage: Damage, message: str) -> None:
    damage(micro)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(micro)
    assert message in str(error.value)
    assert str(micro) in str(error.value)
    assert "\n" not in str(error.value)


def test_all_damage_is_reported_at_once(micro: Path) -> None:
    (micro / "config.json").write_text("nonsense")
    (micro / "trol_gating.pt").unlink()
    (micro / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(micro)
    for name in ("config.json is not JSON", "trol_gating.pt is missing", "model.safetensors is truncated"):
        assert name in str(error.value)


def test_a_shard_that_the_index_does_not_name_is_not_read(micro: Path) -> None:
    edit_index(lambda weight_map: [weight_map.pop(name) for name in list(weight_map) if "00002" in weight_map[name]])(
        micro
    )
    assert any(" is missing, expected " in line for line in deviations(micro))


@pytest.mark.parametrize("kind", ["nothing", "file", "empty directory"])
def test_what_is_no_checkpoint_directory_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "checkpoint"
    if kind == "file":
        path.write_text("text")
    if kind == "empty directory":
        path.mkdir()
    expected = {
        "nothing": f"{path} does not exist, expected the directory of a checkpoint: config.json, model.safetensors, ",
        "file": f"{path} is a file, expected the directory of a checkpoint: config.json, model.safetensors, ",
        "empty directory": f"{path / 'config.json'} is missing: expected a checkpoint's config.json; ",
    }
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(path)
    assert str(error.value).startswith(expected[kind])
