"""Writing what was trained: the official layout, complete or not at all, and nothing that an export would refuse."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trol_export.checkpoint import Checkpoint
from trol_export.checkpoint_check import check_checkpoint
from trol_export.checkpoint_config import read_model_config
from trol_export.tiny.checkpoint_writer import FILES, require_replaceable
from trol_graphs.model import dead_tensors, expected_tensors
from trol_runtime.errors import CheckpointError, NumericError, TrolError, UsageError

from .conftest import Trained

WEIGHT = "model.layers.0.feed_forward.w1.ffn.weight"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_it_reads_back_as_the_parameters_rounded_to_fp16(trained: Trained, trained_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(trained_checkpoint)
    config = read_model_config(checkpoint.config, checkpoint.generation, checkpoint.shapes)
    assert trained.state.keys() == expected_tensors(config).keys()
    for name, tensor in trained.state.items():
        assert checkpoint.tensors[name].dtype == "F16"
        np.testing.assert_array_equal(checkpoint.numpy(name), tensor.numpy().astype(np.float16))


def test_other_precisions_are_stored_as_asked(trained: Trained, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(trained.write(tmp_path / "trained", dtype=torch.float32))
    np.testing.assert_array_equal(checkpoint.numpy(WEIGHT), trained.state[WEIGHT].numpy())


def test_the_layout_is_the_official_one(trained_checkpoint: Path) -> None:
    assert contents(trained_checkpoint).keys() == FILES
    checkpoint = Checkpoint.open(trained_checkpoint)
    # One gate for all layers, which upstream lists and therefore saves once per layer.
    gates = torch.load(trained_checkpoint / "trol_gating.pt", weights_only=True)
    assert list(gates) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert torch.equal(gates["0.weight"], gates["1.weight"])
    # Read by the official loader, without effect.
    config = read_model_config(checkpoint.config, checkpoint.generation, checkpoint.shapes)
    assert {name: set(checkpoint.numpy(name)) for name in dead_tensors(config)} == {
        "vit.vision_tower.vision_model.post_layernorm.weight": {1.0},
        "vit.vision_tower.vision_model.post_layernorm.bias": {0.0},
    }


def test_an_answer_ends_at_the_end_of_the_turn_or_of_the_sequence(trained_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(trained_checkpoint)
    config = read_model_config(checkpoint.config, checkpoint.generation, checkpoint.shapes)
    vocab = json.loads((trained_checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    assert config.eos_token_ids == (vocab["</s>"], vocab["[UNUSED_TOKEN_145]"])
    assert config.bos_token_id == vocab["<s>"]
    assert config.image_token_id == len(vocab)


def test_check_finds_nothing(trained_checkpoint: Path) -> None:
    assert check_checkpoint(trained_checkpoint).deviations == []


def test_the_same_parameters_give_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    assert contents(trained.write(tmp_path / "one")) == contents(trained.write(tmp_path / "two"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (70000.0, f"'{WEIGHT}' holds 70000, expected finite numbers up to 65504, the largest of float16: "),
        (float("nan"), f"'{WEIGHT}' holds nan, expected finite numbers up to 65504, the largest of float16: "),
    ],
)
def test_numbers_that_fp16_cannot_hold_are_refused_by_name(
    trained: Trained, tmp_path: Path, value: float, message: str
) -> None:
    trained.state[WEIGHT][1, 2] = value
    with pytest.raises(NumericError) as error:
        trained.write(tmp_path / "trained")
    assert str(error.value) == message + "the training has diverged"
    assert list(tmp_path.iterdir()) == []


def without_a_weight(trained: Trained) -> None:
    del trained.state[WEIGHT]


def with_too_small_a_vocabulary(trained: Trained) -> None:
    trained.config_json["vocab_size"] -= 1
    trained.state["output.weight"] = trained.state["output.weight"][1:]
    trained.state["model.tok_embeddings.weight"] = trained.state["model.tok_embeddings.weight"][1:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_weight, f"'{WEIGHT}' is missing, expected [48, 32]"),
        (with_too_small_a_vocabulary, "'image_token_index' is "),
    ],
)
def test_what_an_export_would_refuse_is_not_written(
    trained: Trained, tmp_path: Path, damage: Callable[[Trained], None], message: str
) -> None:
    damage(trained)
    with pytest.raises(CheckpointError) as error:
        trained.write(tmp_path / "trained")
    assert str(error.value).startswith(f"{tmp_path / 'trained'} would be refused by an export and is not written: ")
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_there_is_replaced(trained: Trained, trained_checkpoint: Path) -> None:
    trained.state[WEIGHT].fill_(0.5)
    trained.write(trained_checkpoint)
    assert set(Checkpoint.open(trained_checkpoint).numpy(WEIGHT).flat) == {0.5}
    assert list(trained_checkpoint.parent.iterdir()) == [trained_checkpoint]


def test_a_folder_that_holds_anything_else_is_left_alone(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(UsageError) as error:
        trained.write(tmp_path)
    assert str(error.value) == (f"{tmp_path} holds notes.txt, which is no part of a checkpoint: choose another folder")
    assert contents(tmp_path) == {"notes.txt": b"precious"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "taken"
    path.write_text("precious") if kind == "file" else path.symlink_to(tmp_path)
    with pytest.raises(UsageError) as error:
        require_replaceable(path)
    assert str(error.value) == f"{path} is no folder: choose another name for the checkpoint"


def test_a_new_or_empty_folder_is_free(tmp_path: Path) -> None:
    require_replaceable(tmp_path)
    require_replaceable(tmp_path / "new")


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_that_was_there(
    trained: Trained, trained_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(trained_checkpoint)
    written: list[int] = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 4:  # the weights
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrolError) as error:
        trained.write(trained_checkpoint)
    size = sum(map(len, before.values()))
    assert str(error.value) == (
        f"{trained_checkpoint}: the checkpoint of {size:,} bytes cannot be written (disk full); "
        "free some space or choose another folder"
    )
    assert contents(trained_checkpoint) == before
    assert list(trained_checkpoint.parent.iterdir()) == [trained_checkpoint]


def test_when_the_new_folder_cannot_get_its_name_the_old_one_has_it_again(
    trained: Trained, trained_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(trained_checkpoint), Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.write(trained_checkpoint)
    assert contents(trained_checkpoint) == before
    assert list(trained_checkpoint.parent.iterdir()) == [trained_checkpoint]
