from __future__ import annotations

from dataclasses import replace

from small_engine import SMALL_MODEL, small_manifest
from trol_benchmarks.memory_bound import memory_bound, prefill_activations, vision_activations
from trol_runtime.manifest import TensorEntry

# hidden 32, inner 44, 8 query and 4 key/value heads of width 4; vision width 12, inner 20, 3 heads, 5 x 5 patches.
DECODER, VISION = SMALL_MODEL.decoder, SMALL_MODEL.vision


def test_a_short_prompt_is_widest_in_the_mlp() -> None:
    tokens, wide = 2, replace(DECODER, intermediate_size=200)
    assert prefill_activations(wide, tokens) == 4 * (3 * tokens * 32 + 3 * tokens * 200)


def test_a_long_prompt_is_widest_in_the_scores_of_attention() -> None:
    tokens = 100
    assert prefill_activations(DECODER, tokens) == 4 * (3 * tokens * 32 + 2 * tokens * 16 * 4 + 8 * tokens**2)


def test_a_chunk_is_all_that_is_alive_but_for_the_keys_it_attends_to() -> None:
    tokens, chunk = 100, 10
    assert prefill_activations(DECODER, tokens, chunk) == 4 * (3 * chunk * 32 + 2 * chunk * 16 * 4 + 8 * chunk * tokens)
    assert prefill_activations(DECODER, tokens, 2 * tokens) == prefill_activations(DECODER, tokens)


def test_a_prompt_in_chunks_needs_the_cache_of_both_passes() -> None:
    bound = memory_bound(small_manifest(), crops=0, prompt_tokens=9, cache_bytes=1000, prefill_chunk=3)
    assert bound.cache == 2000


def test_vision_counts_the_class_token_and_every_crop() -> None:
    positions = 2 * 26
    attention = 4 * (5 * positions * 12 + 3 * positions * 26)
    assert vision_activations(VISION, crops=2) == attention


def test_activations_of_pictures_and_prompt_are_not_alive_together() -> None:
    manifest = small_manifest()
    tokens = 100
    with_picture = memory_bound(manifest, crops=1, prompt_tokens=tokens, cache_bytes=0)
    assert vision_activations(VISION, 1) < prefill_activations(DECODER, tokens)
    assert with_picture.activations == prefill_activations(DECODER, tokens)


def test_without_a_picture_the_tower_counts_for_nothing() -> None:
    bound = memory_bound(small_manifest(), crops=0, prompt_tokens=2, cache_bytes=0)
    assert bound.activations == prefill_activations(DECODER, 2) < vision_activations(VISION, 1)


def test_weights_stored_in_fp16_count_twice_mapped_and_as_fp32_copies() -> None:
    tensors = {
        "norm.weight": TensorEntry("F16", "F16", (9,), 0),
        "head.weight": TensorEntry("F32", "F32", (3, 5), 256),
    }
    bound = memory_bound(replace(small_manifest(), tensors=tensors), crops=0, prompt_tokens=2, cache_bytes=1000)
    assert (bound.weights, bound.copies, bound.cache) == (18 + 60, 36, 1000)
    assert bound.total == bound.weights + bound.copies + bound.cache + bound.activations
