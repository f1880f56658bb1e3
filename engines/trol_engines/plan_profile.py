"""The shapes a plan is built for: one optimisation profile per role, from the engine's limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from trol_runtime.axis_names import BATCH, CROPS, IMAGE_TOKENS, SEQ
from trol_runtime.manifest import GraphValue, Limits
from trol_runtime.model_config import ModelConfig

_TYPICAL_TEXT = 64  # tokens beside a picture: what a question and its template take


class Range(NamedTuple):
    """Smallest, typical and largest size of an axis."""

    min: int
    opt: int
    max: int


class ShapeRange(NamedTuple):
    """Smallest, typical and largest shape of an input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def axis_ranges(role: str, config: ModelConfig, limits: Limits) -> dict[str, Range]:
    """The sizes each symbolic axis of a role can have; the cache's is no longer one in a plan.

    vision:  the crops of one picture at a time, so that activations are bounded whatever a prompt holds
    prefill: two tokens or more, as a prompt of one is a decode step
    extend:  one token or more
    """
    picture = config.vision.tokens_per_crop * most_crops(config)
    # A small engine may have less room than a picture takes: its prompts are text.
    typical = min(picture + _TYPICAL_TEXT, limits.max_seq)
    image_tokens = Range(1, max(1, min(picture, typical)), limits.max_seq)
    by_role: dict[str, dict[str, Range]] = {
        "vision": {CROPS: Range(1, most_crops(config), most_crops(config))},
        "prefill": {SEQ: Range(2, typical, limits.max_seq), IMAGE_TOKENS: image_tokens},
        "decode": {BATCH: Range(1, 1, limits.max_batch)},
        "extend": {SEQ: Range(1, min(_TYPICAL_TEXT, limits.max_seq), limits.max_seq), IMAGE_TOKENS: image_tokens},
    }
    return by_role[role]


def most_crops(config: ModelConfig) -> int:
    """The most crops that one picture becomes: CLIP sees it whole, InternViT tiles and a thumbnail of all."""
    return 1 if config.vision.kind == "clip" else config.vision.max_tiles + 1


def shape_ranges(inputs: Iterable[GraphValue], axes: dict[str, Range]) -> dict[str, ShapeRange]:
    """The shapes of every input that has a symbolic axis.

    inputs: of the plan's graph, whose caches have their length. Raises KeyError for an axis without a range.
    """
    ranges = {}
    for value in inputs:
        if any(isinstance(size, str) for size in value.shape):
            sizes = [axes[size] if isinstance(size, str) else Range(size, size, size) for size in value.shape]
            ranges[value.name] = ShapeRange(*(tuple(one) for one in zip(*sizes, strict=True)))
    return ranges
