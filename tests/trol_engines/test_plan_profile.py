"""The shapes a plan is built for follow from the model and the engine's limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emitted_graphs import seeded_model
from trol_engines.plan_profile import Range, axis_ranges, most_crops, shape_ranges
from trol_runtime.axis_names import BATCH, CROPS, IMAGE_TOKENS, SEQ
from trol_runtime.manifest import GraphValue, Limits

CLIP = seeded_model("1.8b")[0]  # 1225 tokens a picture
TILED = seeded_model("3.8b")[0]  # 256 tokens a tile
LIMITS = Limits(max_seq=4096, max_batch=5)


def test_vision_takes_the_crops_of_one_picture() -> None:
    assert axis_ranges("vision", CLIP, LIMITS) == {CROPS: Range(1, 1, 1)}
    assert axis_ranges("vision", TILED, LIMITS) == {CROPS: Range(1, 7, 7)}
    assert most_crops(TILED) == TILED.vision.max_tiles + 1  # type: ignore[union-attr]


def test_a_prompt_has_two_tokens_or_more_and_is_typically_a_picture_and_a_question() -> None:
    assert axis_ranges("prefill", CLIP, LIMITS) == {SEQ: Range(2, 1225 + 64, 4096), IMAGE_TOKENS: Range(1, 1225, 4096)}
    assert axis_ranges("prefill", TILED, LIMITS)[SEQ] == Range(2, 7 * 256 + 64, 4096)


def test_a_continuation_may_be_a_single_token() -> None:
    assert axis_ranges("extend", CLIP, LIMITS) == {SEQ: Range(1, 64, 4096), IMAGE_TOKENS: Range(1, 1225, 4096)}


def test_decode_is_typically_one_row() -> None:
    assert axis_ranges("decode", CLIP, LIMITS) == {BATCH: Range(1, 1, 5)}


@pytest.mark.parametrize("role", ["vision", "prefill", "decode", "extend"])
@pytest.mark.parametrize("limits", [Limits(8, 1), Limits(1000, 2), LIMITS])
@pytest.mark.parametrize("config", [CLIP, TILED], ids=["clip", "tiles"])
def test_no_limit_makes_a_profile_that_tensorrt_refuses(role: str, limits: Limits, config: object) -> None:
    for axis in axis_ranges(role, config, limits).values():  # type: ignore[arg-type]
        assert 1 <= axis.min <= axis.opt <= axis.max


def test_an_input_has_the_shapes_of_its_axes_and_one_without_any_has_none() -> None:
    inputs = [
        GraphValue("input_ids", "int64", (1, SEQ)),
        GraphValue("image_embeds", "float16", (IMAGE_TOKENS, 24)),
        GraphValue("write_index", "int64", (1,)),
        GraphValue("past_key_values.0.key", "float16", (1, 2, 8, 8)),
    ]
    ranges = shape_ranges(inputs, {SEQ: Range(2, 4, 8), IMAGE_TOKENS: Range(1, 3, 8)})
    assert ranges == {
        "input_ids": ((1, 2), (1, 4), (1, 8)),
        "image_embeds": ((1, 24), (3, 24), (8, 24)),
    }


def test_caches_of_several_rows_differ_in_their_rows_alone() -> None:
    cache = GraphValue("past_key_values.0.key", "float16", (BATCH, 2, 64, 8))
    ranges = shape_ranges([cache], {BATCH: Range(1, 1, 5)})
    assert ranges == {cache.name: ((1, 2, 64, 8), (1, 2, 64, 8), (5, 2, 64, 8))}


def test_a_tower_that_sees_pictures_whole_has_one_crop_whatever_its_grid() -> None:
    assert most_crops(replace(CLIP, vision=replace(CLIP.vision, grid=12))) == 1
