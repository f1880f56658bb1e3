"""The check at the end of every export: the written file, run as a user will run it, against the eager model in fp32.

Small models are compared whole, through the runtime. Large ones never fit whole into memory as fp32: `parity_by_part`
compares them part by part at real width. Both fill the same record, which goes into the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from trol_runtime.manifest import Limits
from trol_runtime.model_config import ModelConfig

FP16_MAX = 65504.0

# Rows of image embeddings and text tokens in the probing prompt: enough for every path through a layer, and quick.
IMAGE_TOKENS, TEXT_TOKENS, DECODE_STEPS = 64, 24, 4


@dataclass(frozen=True)
class Budget:
    """What a precision may differ by: |d| <= relative * max |reference|, and the least cosine similarity."""

    relative: float
    cosine: float


BUDGETS = {"fp32": Budget(1e-4, 0.999999), "fp16": Budget(1e-2, 0.9999)}


@dataclass(frozen=True)
class Comparison:
    """One output of the engine against the eager model's."""

    output: str
    max_abs_diff: float
    limit: float
    cosine: float
    least_cosine: float

    @property
    def passed(self) -> bool:
        return self.max_abs_diff <= self.limit and self.cosine >= self.least_cosine  # False for NaN

    def to_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "max_abs_diff": _finite(self.max_abs_diff),
            "limit": _finite(self.limit),
            "cosine": _finite(self.cosine),
            "least_cosine": self.least_cosine,
            "verdict": "pass" if self.passed else "FAIL",
        }


@dataclass
class ParityReport:
    """Everything the check saw.

    scope: what was compared, in words
    ranges: largest |activation| of every part of the eager run, by the part's name
    """

    budget: Budget
    scope: str
    comparisons: list[Comparison] = field(default_factory=list)
    ranges: dict[str, float] = field(default_factory=dict)

    def compare(self, output: str, engine: NDArray, eager: NDArray) -> None:
        """Add a row; both float arrays of one shape."""
        got, want = engine.astype(np.float64).ravel(), eager.astype(np.float64).ravel()
        largest = float(np.abs(want).max())
        norms = float(np.linalg.norm(got) * np.linalg.norm(want))
        cosine = float(got @ want) / norms if norms else float(np.array_equal(got, want))
        difference = float(np.abs(got - want).max())
        self.comparisons.append(
            Comparison(output, difference, self.budget.relative * largest, cosine, self.budget.cosine)
        )

    @contextmanager
    def record_ranges(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within the block, note the largest |input| and |output| of every submodule of each part under its name.

        Inputs too: the gated product of an MLP and the sum behind attention leave no module, they enter the next one.
        """

        def note(part: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
            def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                values = [
                    value for value in (*inputs, output) if isinstance(value, Tensor) and value.is_floating_point()
                ]
                largest = [float(value.abs().max()) for value in values]
                self.ranges[part] = float(np.max([self.ranges.get(part, 0.0), *largest]))  # keeps NaN, unlike max()

            return hook

        # Containers such as ModuleList are never called, so their hooks never run.
        hooks = [child.register_forward_hook(note(name)) for name, part in parts.items() for child in part.modules()]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    def verdict(self) -> str:
        """One line: how many outputs passed, and the worst that did not."""
        failed = [comparison for comparison in self.comparisons if not comparison.passed]
        if not failed:
            return f"parity: all {len(self.comparisons)} outputs within their limits"
        worst = max(failed, key=lambda c: c.max_abs_diff / c.limit if c.limit else float("inf"))
        return (
            f"parity failed for {len(failed)} of {len(self.comparisons)} outputs: {worst.output} differs by "
            f"{worst.max_abs_diff:.3g} (limit {worst.limit:.3g}), cosine {worst.cosine:.6f} (at least "
            f"{worst.least_cosine})"
        )

    def overflowing(self) -> list[str]:
        """Parts whose activations would not fit fp16."""
        return [part for part, largest in self.ranges.items() if not largest < FP16_MAX]

    def parity_json(self) -> dict[str, Any]:
        return {
            "reference": "eager model, fp32",
            "scope": self.scope,
            "verdict": "pass" if self.passed else "FAIL",
            "outputs": [comparison.to_json() for comparison in self.comparisons],
        }

    def fp16_range_json(self) -> dict[str, Any]:
        return {
            "fp16_max": FP16_MAX,
            "verdict": "fits" if not self.overflowing() else f"overflows in {', '.join(self.overflowing())}",
            "activations": [{"part": part, "max_abs": _finite(largest)} for part, largest in self.ranges.items()],
        }


@dataclass(frozen=True)
class Probe:
    """The inputs of the check: the same for every export of a config.

    picture: an RGB picture that is neither square nor flat; twice as wide as high, InternViT's tiles are two and a
      thumbnail, which is every kind of crop at less than half the memory of all seven
    ids: a prompt of text, image tokens (as many as there are embeddings to deal), text; int64 (tokens,)
    image_tokens: how many of `ids` are image tokens
    text_ids: a prompt without a picture
    """

    picture: Image.Image
    ids: NDArray[np.int64]
    image_tokens: int
    text_ids: NDArray[np.int64]


def make_probe(config: ModelConfig, limits: Limits) -> Probe:
    """A seeded probe that fits the engine's length."""
    random = np.random.default_rng(0)
    slope = np.add.outer(np.arange(120), np.arange(240))[..., None] * np.array([0.2, 0.4, 0.6])
    picture = Image.fromarray((slope + random.integers(0, 40, (120, 240, 3))).clip(0, 255).astype(np.uint8))
    room = limits.max_seq - DECODE_STEPS
    text = min(TEXT_TOKENS, max(room // 2, 1))
    image = min(IMAGE_TOKENS, config.vision.tokens_per_crop, max(room - text, 0))
    ids = random.integers(3, config.decoder.vocab_size, text)
    ids[ids == config.image_token_id] = 3
    with_picture = np.concatenate([ids[: text // 2], np.full(image, config.image_token_id), ids[text // 2 :]])
    return Probe(picture, with_picture.astype(np.int64), image, ids.astype(np.int64))


def _finite(number: float) -> float | None:
    """JSON has no NaN."""
    return number if np.isfinite(number) else None
