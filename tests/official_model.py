"""A checkpoint and what the official code computes with it: the golden cases as inputs and expectations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from golden.golden import Golden
from trol_export.checkpoint import Checkpoint
from trol_export.checkpoint_config import read_model_config
from trol_graphs.eager import EagerSession, eager_model
from trol_runtime.model_config import ModelConfig
from trol_runtime.preprocess import preprocess

# fp32 against the official fp32 outputs: |difference| <= 1e-4 of the tensor's largest value. The official code itself
# moves by 1e-6 of it between one thread and two.
FP32_BUDGET = 1e-4


def assert_close(name: str, found: np.ndarray, expected: np.ndarray, budget: float = FP32_BUDGET) -> None:
    """Fails with the tensor's name, the largest difference, where it is, and the limit."""
    assert found.shape == expected.shape, f"{name}: shape {found.shape}, expected {expected.shape}"
    difference = np.abs(found.astype(np.float64) - expected)
    limit = budget * np.abs(expected).max()
    where = tuple(map(int, np.unravel_index(difference.argmax(), difference.shape)))
    assert difference.max() <= limit, f"{name}: off by {difference.max():.3g} at {where}, limit {limit:.3g}"


@dataclass(frozen=True)
class OfficialModel:
    """Official outputs and the checkpoint they were made with."""

    golden: Golden
    checkpoint: Checkpoint

    @cached_property
    def config(self) -> ModelConfig:
        return read_model_config(self.checkpoint.config, self.checkpoint.generation, self.checkpoint.shapes)

    @cached_property
    def eager(self) -> EagerSession:
        return EagerSession(eager_model(self.config, self.checkpoint.torch))

    @cached_property
    def pictures(self) -> tuple[str, ...]:
        return tuple(self.golden.spec["images"])

    def pixels(self, picture: str) -> np.ndarray:
        """The picture's pixel values; golden themselves by digest, see tests/trol_runtime/test_preprocess.py."""
        return preprocess([Image.fromarray(self.golden[f"image/{picture}/source"])], self.config.vision)

    @cached_property
    def image_embeds(self) -> dict[str, np.ndarray]:
        """Picture -> eager embeddings, (tokens, hidden), held to golden ones by test_eager_against_golden.py."""
        return {name: self.eager.encode(self.pixels(name)).reshape(-1, self.hidden) for name in self.pictures}

    @property
    def hidden(self) -> int:
        return self.config.decoder.hidden_size

    @property
    def layers(self) -> int:
        return self.config.decoder.layers

    def embeds_of(self, case: str, row: int = 0) -> np.ndarray | None:
        """The embeddings that belong to a row of a case; row r of a batch with pictures shows picture r."""
        if "text" in case:
            return None
        return self.image_embeds[self.pictures[row]]

    def ids(self, case: str, row: int = 0) -> np.ndarray:
        """The row's prompt without its padding, int64 (1, s)."""
        real = self.golden[f"{case}/attention_mask"][row].astype(bool)
        return self.golden[f"{case}/input_ids"][row][real][None]
