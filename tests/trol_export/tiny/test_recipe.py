"""TroL-tiny's sizes, read by what reads every checkpoint, and the plan of its training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from trol_benchmarks.world.sampling import KINDS
from trol_export.checkpoint_config import examine_config, read_model_config
from trol_export.tiny.checkpoint_writer import write_checkpoint
from trol_export.tiny.lessons import tokenizer_and_config
from trol_export.tiny.recipe import RELEASED, config_json, model_config
from trol_export.tiny.training import TRAINED, Training
from trol_graphs.model import expected_tensors
from trol_runtime.model_config import ClipVision, ModelConfig


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    """Over the vocabulary that it is trained with."""
    return tokenizer_and_config()[1]


@pytest.mark.parametrize("vocab_size", [500, 708])
def test_config_json_reads_back_as_the_model(vocab_size: int) -> None:
    config = model_config(vocab_size)
    written = json.loads(json.dumps(config_json(config)))
    assert read_model_config(written, {}, expected_tensors(config)) == config


def test_nothing_in_it_needs_a_note(config: ModelConfig) -> None:
    reading = examine_config(config_json(config), {}, expected_tensors(config))
    assert reading.notes == []


def test_a_picture_is_168_pixels_a_side_and_144_tokens(config: ModelConfig) -> None:
    assert config.vision.image_size == 168
    assert config.vision.tokens_per_crop == 144
    assert config_json(config)["vision_tower_config"]["image_size"] == 168


def test_every_part_of_the_released_internlm2_models_is_there(config: ModelConfig) -> None:
    assert config.arch == "internlm2"
    assert isinstance(config.vision, ClipVision)
    assert config.decoder.lora_rank > 0
    assert config.decoder.kv_heads < config.decoder.heads  # grouped queries
    assert config.decoder.embedding_rows == config.decoder.vocab_size + 1
    assert config.image_token_id == config.decoder.vocab_size
    # Heads divide the width, and rotary embedding turns pairs of channels.
    for part in (config.decoder, config.vision):
        assert part.hidden_size % part.heads == 0
    assert config.decoder.head_dim % 2 == 0


def test_the_checkpoint_is_at_most_12_megabytes_in_fp16(tmp_path: Path) -> None:
    training = Training(RELEASED)
    weights, tokenizer = training.released_weights(), training.lessons.tokenizer_json
    write_checkpoint(tmp_path / "checkpoint", config_json(training.config), tokenizer, weights)
    assert sum(path.stat().st_size for path in (tmp_path / "checkpoint").iterdir()) <= 12_000_000


def test_the_longest_row_of_the_training_is_within_the_positions(config: ModelConfig) -> None:
    assert config.vision.tokens_per_crop + sum(RELEASED.room) < config.decoder.max_positions


# The plan


def test_the_papers_two_steps_come_in_their_order_behind_what_stands_in_for_pretrained_parts() -> None:
    assert [phase.name for phase in RELEASED.phases] == [
        "tower",
        "language",
        "words",
        "alignment",
        "decoder",
        "everything",
    ]
    assert set(TRAINED) == {phase.name for phase in RELEASED.phases}


def test_every_phase_warms_up_and_comes_down_again() -> None:
    for phase in RELEASED.phases:
        assert 0 < phase.warm_up < phase.steps
        assert 0 <= phase.floor < 1
        assert phase.batch > 0
        assert math.isfinite(phase.learning_rate)
        assert phase.learning_rate > 0


def test_every_step_shows_as_many_new_pictures_as_any_other() -> None:
    for phase in RELEASED.phases:
        assert phase.batch % phase.shown == 0
        assert phase.shown == 1 or phase.name == "tower"


def test_every_phase_sees_every_kind_of_scene() -> None:
    for phase in RELEASED.phases:
        assert set(phase.kinds) == set(KINDS)


def test_what_is_released_is_trained_with_traversal() -> None:
    assert RELEASED.traversal
