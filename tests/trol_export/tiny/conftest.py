"""A model that might have been trained, for the tests of what is written of it: micro sizes, seeded random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from golden.seeded_checkpoint import (
    CONFIGS,
    checkpoint_tensor,
    config_json,
    gating_tensors,
    merge,
    tensor_table,
)
from trol_export.tiny.checkpoint_writer import write_checkpoint
from trol_export.tiny.tokenizer import build_tokenizer


class Trained(NamedTuple):
    """The arguments of `write_checkpoint` but the folder."""

    config_json: dict[str, Any]
    tokenizer: dict[str, Any]
    state: dict[str, torch.Tensor]

    def write(self, directory: Path, **options: Any) -> Path:
        write_checkpoint(directory, self.config_json, self.tokenizer, self.state, **options)
        return directory


@pytest.fixture
def trained() -> Trained:
    """Parameters under the names of `expected_tensors`, and what belongs to them; the test may change all of it."""
    tokenizer = build_tokenizer(["What colour is the square?", "The square is red."])
    vocab = len(tokenizer["model"]["vocab"])
    config = merge(CONFIGS["micro-internlm2"], {"llm": {"vocab_size": vocab, "image_token_index": vocab}})
    names = [name for name in tensor_table(config) if "post_layernorm" not in name]
    state = {name: checkpoint_tensor(config, name) for name in names}
    gates = gating_tensors(config)
    state |= {f"trol_gating.{part}": gates[f"0.{part}"] for part in ("weight", "bias")}
    return Trained(config_json(config), tokenizer, state)


@pytest.fixture
def trained_checkpoint(trained: Trained, tmp_path: Path) -> Path:
    """`trained`, written."""
    return trained.write(tmp_path / "trained")
