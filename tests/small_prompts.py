"""Seeded prompts and pictures for small engines, and the budget their logits are held to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trol_runtime.model_config import ModelConfig

# INTERFACES of the project: fp32 tensors within 1e-4 of their largest value. fp32 sums in another order move by 1e-6.
FP32_BUDGET = 1e-4


def text_ids(config: ModelConfig, tokens: int, seed: int = 0) -> np.ndarray:
    """A row of random ids without pictures, int64 (1, tokens)."""
    ids = np.random.default_rng([tokens, seed]).integers(3, config.decoder.vocab_size - 1, (1, tokens))
    return np.where(ids == config.image_token_id, 3, ids)


def prompt_ids(config: ModelConfig, texts: Sequence[int], crops: Sequence[int], seed: int = 0) -> np.ndarray:
    """Random text of texts[0] tokens, a picture of crops[0] crops, text of texts[1] tokens, ...: int64 (1, s)."""
    parts = [text_ids(config, tokens, seed + place) for place, tokens in enumerate(texts)]
    tokens_per_crop = config.vision.tokens_per_crop
    for place, count in reversed([*enumerate(crops, 1)]):
        parts.insert(place, np.full((1, count * tokens_per_crop), config.image_token_id))
    return np.concatenate(parts, axis=1)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of noise, mode RGB."""
    pixels = np.random.default_rng([width, height, seed]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def gradient(width: int, height: int) -> Image.Image:
    """From black at the top to white at the bottom, mode RGB: looks different when turned."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def picture_file(folder: Path, name: str = "x.png", width: int = 40, height: int = 50) -> Path:
    """A PNG of noise in `folder`."""
    picture(width, height).save(folder / name)
    return folder / name


def assert_close(found: np.ndarray, expected: np.ndarray, budget: float = FP32_BUDGET) -> None:
    """Fails unless every value is within `budget` times the largest expected one."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    limit = budget * np.abs(expected).max()
    difference = np.abs(found.astype(np.float64) - expected).max()
    assert difference <= limit, f"off by {difference:.3g}, limit {limit:.3g}"


def assert_same_choice(found: np.ndarray, expected: np.ndarray, budget: float = FP32_BUDGET) -> None:
    """Fails unless the logits choose the same token, wherever two of them are not within the budget of each other."""
    second, first = np.sort(expected, axis=-1)[..., -2:].T
    clear = (first - second) > 2 * budget * np.abs(expected).max(axis=-1)
    assert (found.argmax(-1) == expected.argmax(-1))[clear].all()
