"""`trol-export --check`: every deviation of a checkpoint in one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden.seeded_checkpoint import write_checkpoint
from golden.tiny_tokenizer import write_tiny_tokenizer
from trol_export.checkpoint_check import check_checkpoint
from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.errors import CheckpointError, UsageError
from trol_runtime.model_config import ModelConfig


@pytest.fixture(params=["internlm2", "phi3"])
def complete(request: pytest.FixtureRequest, tmp_path: Path, tiny_internlm2: Path, tiny_phi3: Path) -> Path:
    """A checkpoint with its tokenizer; the weights are links, not to be written to."""
    source = {"internlm2": tiny_internlm2, "phi3": tiny_phi3}[request.param]
    directory = tmp_path / request.param
    directory.mkdir()
    for file in source.iterdir():
        (directory / file.name).symlink_to(file)
    write_tiny_tokenizer(request.param, directory)
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps(config))


def test_a_good_checkpoint_has_no_deviations(complete: Path) -> None:
    report = check_checkpoint(complete)
    assert report.deviations == []
    assert report.ok
    assert report.table().splitlines()[-1] == "verdict     can be exported"


def test_the_report_survives_json(complete: Path) -> None:
    report = check_checkpoint(complete)
    data = json.loads(json.dumps(report.to_json()))
    assert dataclass_from_json(ModelConfig, data["model"]) == report.model
    assert data["ok"] is True
    assert data["commit"] is None
    assert data["tensors"]["count"] == report.tensors
    assert sum(data["tensors"]["bytes"].values()) == sum(report.dtypes.values()) > 100_000


def test_gates_that_differ_between_layers_are_a_note(complete: Path) -> None:
    (note,) = [note for note in check_checkpoint(complete).notes if "trol_gating.pt" in note]
    assert note == (
        "trol_gating.pt: the layers' entries differ; as in the official code all layers use the last one's: "
        "2.weight, 2.bias"
    )


def test_equal_gates_are_no_note(complete: Path) -> None:
    model = check_checkpoint(complete).model
    assert model is not None
    hidden = model.decoder.hidden_size
    gates = {
        f"{i}.{part}": torch.ones(shape) for i in range(3) for part, shape in (("weight", (1, hidden)), ("bias", 1))
    }
    (complete / "trol_gating.pt").unlink()
    torch.save(gates, complete / "trol_gating.pt")
    assert not any("trol_gating.pt" in note for note in check_checkpoint(complete).notes)


def test_dead_tensors_are_listed(complete: Path) -> None:
    dead = [note for note in check_checkpoint(complete).notes if "has no effect in the official code" in note]
    expected = [
        "'vit.vision_tower.vision_model.post_layernorm.weight'",
        "'vit.vision_tower.vision_model.post_layernorm.bias'",
    ]
    assert [note.split()[0] for note in dead] == (expected if complete.name == "internlm2" else [])


def test_unknown_keys_are_notes_and_do_not_stop_an_export(complete: Path) -> None:
    edit_config(complete, surprise=3)
    report = check_checkpoint(complete)
    assert "config.json: 'surprise' (3) is unknown and has no effect here" in report.notes
    assert report.ok


def test_config_tensors_gate_and_tokenizer_are_all_reported_at_once(tmp_path: Path) -> None:
    directory = write_checkpoint("micro-internlm2", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["surprise"] = torch.zeros(2)
    save_file(tensors, directory / "model.safetensors")
    edit_config(directory, hidden_act="gelu", tie_word_embeddings=True)
    torch.save({"0.weight": torch.zeros(1, 32), "0.bias": torch.zeros(1)}, directory / "trol_gating.pt")
    (directory / "generation_config.json").write_text("{")
    report = check_checkpoint(directory)
    assert [line.replace(str(directory), "DIR").split(":")[0] for line in report.deviations[:1]] == [
        "DIR/generation_config.json is not JSON"
    ]
    assert report.deviations[1:6] == [
        "config.json: 'hidden_act' is 'gelu', expected 'silu'",
        "config.json: 'tie_word_embeddings' is True, expected False",
        "'model.norm.weight' is missing, expected [32]",
        "'surprise' [2] is unexpected: no part of this model reads it",
        "trol_gating.pt lacks 1.bias, 1.weight, expected a weight and a bias for each of 2 layers",
    ]
    assert "has neither tokenizer.json nor tokenizer.model" in report.deviations[6]
    assert report.table().splitlines()[-1] == "verdict     7 deviation(s): cannot be exported"
    assert not report.ok


def test_missing_weights_are_one_deviation_and_not_one_per_tensor(complete: Path) -> None:
    (complete / "model.safetensors").unlink()
    report = check_checkpoint(complete)
    (deviation,) = report.deviations
    assert "holds no weights" in deviation


def test_a_missing_config_is_one_deviation(complete: Path) -> None:
    (complete / "config.json").unlink()
    report = check_checkpoint(complete)
    assert report.model is None
    (deviation,) = report.deviations
    assert "config.json is missing" in deviation


def test_a_size_beyond_all_models_is_one_deviation(tmp_path: Path) -> None:
    directory = write_checkpoint("micro-internlm2", tmp_path)
    edit_config(directory, hidden_size=2**31 - 2)
    report = check_checkpoint(directory)
    assert report.deviations[0] == "config.json: 'hidden_size' is 2147483646, expected an integer from 1 to 16777216"
    assert report.model is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_directory_in_place_of_a_tokenizer_file_is_one_deviation(complete: Path, name: str) -> None:
    (complete / "tokenizer.json").unlink()
    (complete / name).mkdir()
    assert check_checkpoint(complete).deviations == [f"{complete / name} cannot be read: Is a directory"]


def test_damaged_tokenizer_files_are_one_deviation(complete: Path) -> None:
    (complete / "tokenizer.json").write_text("{")
    (deviation,) = check_checkpoint(complete).deviations
    assert "tokenizer.json" in deviation
    assert "not JSON" in deviation


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file, expected the directory of a checkpoint"):
        check_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("source", ["nowhere", "no/such/directory", "./nowhere/at-all/"])
def test_what_is_neither_a_directory_nor_a_hub_id_is_a_wrong_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        check_checkpoint(source)
    assert str(error.value) == (
        f"'{source}' does not exist: pass a checkpoint's directory or a hub id such as BK-Lee/TroL-1.8B"
    )
