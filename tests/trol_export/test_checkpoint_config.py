"""config.json to a ModelConfig: what it is read as, and every value that is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from golden.seeded_checkpoint import config_json, read_config, tensor_table
from trol_export.checkpoint_config import ConfigReading, examine_config, read_model_config
from trol_export.token_ids import TokenIds
from trol_graphs.model import expected_tensors
from trol_runtime.errors import CheckpointError
from trol_runtime.model_config import ClipVision, Decoder, InternVitVision, Rope

ABSENT = object()


def described(config: str, **overrides: Any) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """config.json and shapes of a seeded checkpoint; overrides of its parts (`llm`, `vit`, ...) change both alike."""
    full = read_config(config, overrides)
    shapes = {name: tuple(entry.shape) for name, entry in tensor_table(full).items()}
    return config_json(full), shapes


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`config` with the value at a dotted path replaced, or removed when ABSENT."""
    *sections, key = path.split(".")
    for section in sections:
        config = config[section]
    if value is ABSENT:
        config.pop(key, None)
    else:
        config[key] = value
    return config


def examined(config: str, path: str, value: Any, generation: dict[str, Any] | None = None) -> ConfigReading:
    json, shapes = described(config)
    changed(json, path, value)
    return examine_config(json, generation or {}, shapes)


def test_an_internlm2_checkpoint_is_read_as_what_it_was_written_from() -> None:
    json, shapes = described("distinct-internlm2")
    clip, model = json["vision_tower_config"], read_model_config(json, {}, shapes)
    assert model.arch == "internlm2"
    assert model.vision == ClipVision(
        hidden_size=clip["hidden_size"],
        intermediate_size=clip["intermediate_size"],
        layers=clip["num_hidden_layers"],
        heads=clip["num_attention_heads"],
        patch_size=clip["patch_size"],
        grid=clip["grid"],
        layer_norm_eps=1e-5,
    )
    assert model.decoder == Decoder(
        hidden_size=json["hidden_size"],
        intermediate_size=json["intermediate_size"],
        layers=json["num_hidden_layers"],
        heads=json["num_attention_heads"],
        kv_heads=json["num_key_value_heads"],
        vocab_size=json["vocab_size"],
        embedding_rows=json["vocab_size"] + 1,
        rms_norm_eps=1e-5,
        rope=Rope(1e6),
        max_positions=32768,
        lora_rank=read_config("distinct-internlm2")["lora_r"],
        attention_bias=False,
    )
    assert (model.image_token_id, model.eos_token_ids) == (json["vocab_size"], (2,))
    assert (model.bos_token_id, model.pad_token_id) == (1, 2)


def test_a_phi3_checkpoint_is_read_as_what_it_was_written_from() -> None:
    json, shapes = described("distinct-phi3")
    vit, trunk, model = json["vision_config"], json["llm_config"], read_model_config(json, {}, shapes)
    assert model.arch == "phi3"
    assert model.vision == InternVitVision(
        hidden_size=vit["hidden_size"],
        intermediate_size=vit["intermediate_size"],
        layers=vit["num_hidden_layers"],
        heads=vit["num_attention_heads"],
        patch_size=vit["patch_size"],
        grid=vit["image_size"] // vit["patch_size"],
        layer_norm_eps=1e-6,
        norm_type="layer_norm",
        qkv_bias=True,
        qk_normalization=False,
    )
    factors = trunk["rope_scaling"]
    assert model.decoder == Decoder(
        hidden_size=trunk["hidden_size"],
        intermediate_size=trunk["intermediate_size"],
        layers=trunk["num_hidden_layers"],
        heads=trunk["num_attention_heads"],
        kv_heads=trunk["num_key_value_heads"],
        vocab_size=trunk["vocab_size"],
        embedding_rows=trunk["vocab_size"],
        rms_norm_eps=1e-5,
        rope=Rope(1e4, "su", tuple(factors["short_factor"]), tuple(factors["long_factor"]), 4096, 131072),
        max_positions=131072,
    )
    assert model.image_token_id == json["image_token_index"]


@pytest.mark.parametrize("config", ["tiny-internlm2", "tiny-phi3", "1.8b", "3.8b", "7b"])
def test_official_shapes_leave_neither_deviations_nor_notes(config: str) -> None:
    json, shapes = described(config)
    reading = examine_config(json, {}, shapes)
    assert (reading.deviations, reading.notes) == ([], [])


def test_a_missing_tower_description_means_clip_l_as_in_the_official_config() -> None:
    json, shapes = described("1.8b")
    del json["vision_tower_config"]
    vision = read_model_config(json, {}, shapes).vision
    assert vision == ClipVision(1024, 4096, 24, 16, patch_size=14, grid=35, layer_norm_eps=1e-5)
    assert vision.image_size == 490


def test_sizes_of_the_tower_come_from_the_tensors_and_heads_are_64_wide_unless_stated() -> None:
    json, shapes = described("1.8b", clip={"hidden_size": 640, "num_hidden_layers": 2, "patch_size": 7, "grid": 6})
    del json["vision_tower_config"]
    vision = read_model_config(json, {}, shapes).vision
    assert (vision.hidden_size, vision.layers, vision.heads) == (640, 2, 10)
    assert (vision.patch_size, vision.grid) == (7, 6)


@pytest.mark.parametrize(
    "vit",
    [
        {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True},
        {"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False},
    ],
)
def test_vision_switches_that_are_not_stated_are_seen_in_the_tensors(vit: dict[str, Any]) -> None:
    json, shapes = described("micro-phi3", vit=vit)
    stated = read_model_config(json, {}, shapes).vision
    for key, value in vit.items():
        assert getattr(stated, key) == value
        del json["vision_config"][key]
    assert read_model_config(json, {}, shapes).vision == stated


def test_biases_of_internlm2_are_read() -> None:
    json, shapes = described("micro-internlm2", llm={"bias": True})
    assert read_model_config(json, {}, shapes).decoder.attention_bias
    del json["bias"]
    assert read_model_config(json, {}, shapes).decoder.attention_bias


def test_key_value_heads_default_to_one_per_query_head() -> None:
    json, shapes = described("micro-internlm2", llm={"num_key_value_heads": 4})
    del json["num_key_value_heads"]
    assert read_model_config(json, {}, shapes).decoder.kv_heads == 4


def test_dynamic_rope_scaling_of_internlm2_is_plain_rope_up_to_the_engines_limit() -> None:
    reading = examined("micro-internlm2", "rope_scaling", {"type": "dynamic", "factor": 2.0})
    assert reading.deviations == []
    assert reading.model is not None
    assert reading.model.decoder.rope == Rope(1e6)


@pytest.mark.parametrize(("window", "positions"), [(None, 131072), (262144, 131072), (2047, 2047)])
def test_a_sliding_window_caps_the_positions_but_not_the_rope_scale(window: int | None, positions: int) -> None:
    model = examined("micro-phi3", "llm_config.sliding_window", window).model
    assert model is not None
    assert model.decoder.max_positions == positions
    assert model.decoder.rope.max_positions == 131072


def test_phi3_without_rope_scaling_and_with_yarn() -> None:
    plain = examined("micro-phi3", "llm_config.rope_scaling", None).model
    assert plain is not None
    assert plain.decoder.rope == Rope(1e4)
    yarn = examined("micro-phi3", "llm_config.rope_scaling.type", "yarn").model
    assert yarn is not None
    assert yarn.decoder.rope.kind == "yarn"


I2, P3 = "micro-internlm2", "micro-phi3"
REFUSED = [
    (I2, "hidden_act", "gelu", "config.json: 'hidden_act' is 'gelu', expected 'silu'"),
    (I2, "tie_word_embeddings", True, "config.json: 'tie_word_embeddings' is True, expected False"),
    (I2, "model_type", "llama", "config.json: 'model_type' is 'llama', expected 'internlm' or 'internlm2'"),
    (
        I2,
        "rope_scaling",
        {"type": "linear", "factor": 2.0},
        "config.json: 'rope_scaling' is {'type': 'linear', 'factor': 2.0}, expected null or type 'dynamic', "
        "which has no effect up to max_position_embeddings",
    ),
    (I2, "rms_norm_eps", ABSENT, "config.json: 'rms_norm_eps' is missing, expected a number above 0"),
    (I2, "rope_theta", 10**400, f"config.json: 'rope_theta' is 1{'0' * 56}..., expected a number above 0"),
    (I2, "rms_norm_eps", float("nan"), "config.json: 'rms_norm_eps' is nan, expected a number above 0"),
    (I2, "rope_theta", "1e6", "config.json: 'rope_theta' is '1e6', expected a number above 0"),
    (I2, "bias", "no", "config.json: 'bias' is 'no', expected true or false"),
    (I2, "image_token_index", 321, "config.json: 'image_token_index' is 321, expected a token id from 0 to 320"),
    (I2, "eos_token_id", ABSENT, "config.json: 'eos_token_id' is missing, expected the id at which generation stops"),
    (I2, "eos_token_id", [2, 320], "config.json: 'eos_token_id' is [2, 320], expected token ids from 0 to 319"),
    (I2, "bos_token_id", ABSENT, "config.json: 'bos_token_id' is missing, expected the id of '<s>'"),
    (
        I2,
        "vision_tower_config.hidden_act",
        "gelu",
        "config.json vision_tower_config: 'hidden_act' is 'gelu', expected 'quick_gelu'",
    ),
    (
        I2,
        "vision_tower_config.hidden_size",
        32,
        "config.json vision_tower_config: 'hidden_size' is 32, expected 16, which the tensors' shapes say",
    ),
    (
        I2,
        "vision_tower_config.num_hidden_layers",
        3,
        "config.json vision_tower_config: 'num_hidden_layers' is 3, expected 2, which the tensors' shapes say",
    ),
    (
        I2,
        "vision_tower_config.grid",
        35,
        "config.json vision_tower_config: 'grid' is 35, expected 4, which the tensors' shapes say",
    ),
    (P3, "select_layer", -2, "config.json: 'select_layer' is -2, expected -1"),
    (P3, "downsample_ratio", 0.25, "config.json: 'downsample_ratio' is 0.25, expected 0.5"),
    (P3, "use_llm_lora", 16, "config.json: 'use_llm_lora' is 16, expected 0"),
    (
        P3,
        "force_image_size",
        448,
        "config.json: 'force_image_size' is 448, expected 32: the position table has 8 patches of 4 a side",
    ),
    (
        P3,
        "vision_config.image_size",
        224,
        "config.json vision_config: 'image_size' is 224, expected 32: the position table has 8 patches of 4 a side",
    ),
    (
        P3,
        "vision_config.norm_type",
        "batch_norm",
        "config.json vision_config: 'norm_type' is 'batch_norm', expected 'layer_norm' or 'rms_norm'",
    ),
    (P3, "vision_config.hidden_act", "silu", "config.json vision_config: 'hidden_act' is 'silu', expected 'gelu'"),
    (P3, "llm_config.model_type", "llama", "config.json llm_config: 'model_type' is 'llama', expected 'phi3'"),
    (
        P3,
        "llm_config.tie_word_embeddings",
        True,
        "config.json llm_config: 'tie_word_embeddings' is True, expected False",
    ),
    (
        P3,
        "llm_config.rope_scaling.type",
        "longrope",
        "config.json llm_config rope_scaling: 'type' is 'longrope', expected 'su' or 'yarn'",
    ),
    (
        P3,
        "llm_config.rope_scaling.short_factor",
        [1.0, 2.0, 3.0],
        "config.json llm_config rope_scaling: 'short_factor' is [1.0, 2.0, 3.0], expected 4 numbers above 0, "
        "one per pair of a head's channels (found 3)",
    ),
    (
        P3,
        "llm_config.rope_scaling.long_factor",
        [1.0, 2.0, 0.0, 3.0],
        "config.json llm_config rope_scaling: 'long_factor' is [1.0, 2.0, 0.0, 3.0], expected 4 numbers above 0, "
        "one per pair of a head's channels (found 4)",
    ),
    (
        P3,
        "llm_config.rope_scaling.mscale",
        1.2,
        "config.json llm_config rope_scaling: 'mscale' is 1.2, expected only type, short_factor and long_factor",
    ),
    (
        P3,
        "llm_config.original_max_position_embeddings",
        ABSENT,
        "config.json llm_config: 'original_max_position_embeddings' is missing, expected an integer from 2 to 16777216",
    ),
    (
        P3,
        "image_token_index",
        ABSENT,
        "config.json: 'image_token_index' is missing, expected the id of '<IMG_CONTEXT>': "
        "there is no tokenizer file that names it either",
    ),
    (
        P3,
        "llm_config.sliding_window",
        0,
        "config.json llm_config: 'sliding_window' is 0, expected an integer from 1 to 16777216",
    ),
]


@pytest.mark.parametrize(("config", "path", "value", "message"), REFUSED)
def test_what_changes_arithmetic_is_refused_by_name(config: str, path: str, value: Any, message: str) -> None:
    assert examined(config, path, value).deviations == [message]
    json, shapes = described(config)
    changed(json, path, value)
    with pytest.raises(CheckpointError) as error:
        read_model_config(json, {}, shapes)
    assert str(error.value) == message


UNKNOWN_SIZES = [
    (I2, "hidden_size", 2**31 - 2, "'hidden_size' is 2147483646, expected an integer from 1 to 16777216"),
    (I2, "vision_tower_config.patch_size", 2**24, "'patch_size' is 16777216, expected an integer from 1 to 4096"),
    (I2, "hidden_size", ABSENT, "'hidden_size' is missing, expected an integer from 1 to 16777216"),
    (I2, "hidden_size", True, "'hidden_size' is True, expected an integer from 1 to 16777216"),
    (I2, "num_hidden_layers", 10**9, "'num_hidden_layers' is 1000000000, expected an integer from 1 to 1000"),
    (I2, "num_attention_heads", 0, "'num_attention_heads' is 0, expected an integer from 1 to 16777216"),
    (I2, "num_attention_heads", 5, "'num_attention_heads' is 5, expected a divisor of hidden_size 32"),
    (
        I2,
        "num_attention_heads",
        32,
        "'num_attention_heads' is 32, expected a divisor of hidden_size 32 that leaves heads",
    ),
    (I2, "num_key_value_heads", 3, "'num_key_value_heads' is 3, expected a divisor of num_attention_heads 4"),
    (
        I2,
        "vision_tower_config.num_attention_heads",
        3,
        "'num_attention_heads' is 3, expected a divisor of hidden_size 16",
    ),
    (P3, "llm_config", "phi3", "config.json: 'llm_config' is 'phi3', expected an object"),
]


@pytest.mark.parametrize(("config", "path", "value", "message"), UNKNOWN_SIZES)
def test_a_size_that_cannot_be_is_refused_and_no_model_is_made_of_it(
    config: str, path: str, value: Any, message: str
) -> None:
    reading = examined(config, path, value)
    assert reading.model is None
    assert any(message in line for line in reading.deviations)


ABSURD_SHAPES = [
    (I2, "model.layers.0.attention.wqkv.lora_A.weight", (2**40, 32), "config.json: 'lora_rank' is 1099511627776"),
    (
        P3,
        "vision_model.embeddings.position_embedding",
        (1, 5000**2 + 1, 16),
        "config.json vision_config: 'grid' is 5000",
    ),
    (P3, "vision_model.embeddings.class_embedding", (1, 1, 2**40), "vision_config: 'hidden_size' is 1099511627776"),
]


@pytest.mark.parametrize(("config", "name", "shape", "message"), ABSURD_SHAPES)
def test_a_size_in_the_tensors_that_cannot_be_is_refused_and_no_model_is_made_of_it(
    config: str, name: str, shape: tuple[int, ...], message: str
) -> None:
    json, shapes = described(config)
    reading = examine_config(json, {}, {**shapes, name: shape})
    assert reading.model is None
    assert any(f"{message} by the tensors' shapes, expected 1 to" in line for line in reading.deviations)


@pytest.mark.parametrize("config", [I2, P3])
def test_a_model_of_the_largest_sizes_can_be_laid_out(config: str) -> None:
    json, _ = described(config)
    trunk = json.get("llm_config", json)
    trunk |= {"hidden_size": 2**24, "intermediate_size": 2**24, "vocab_size": 2**24, "max_position_embeddings": 2**24}
    json["vision_config" if config == P3 else "vision_tower_config"] |= {
        "hidden_size": 2**24,
        "intermediate_size": 2**24,
        "patch_size": 4096,
    }
    reading = examine_config(json, {}, {})
    assert reading.model is not None
    assert (2**24, 3, 4096, 4096) in expected_tensors(reading.model).values()


def test_an_empty_config_names_everything_it_lacks() -> None:
    reading = examine_config({}, {}, {})
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps", "rope_theta", "eos_token_id"):
        assert any(f"'{key}' is missing" in line for line in reading.deviations)


def paths(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")


@pytest.mark.parametrize("config", [I2, P3])
@pytest.mark.parametrize("junk", [None, True, -1, 0, 1, 1e308, "text", [], ["a"], {}, {"a": 1}])
def test_junk_under_any_key_is_reported_and_never_a_crash(config: str, junk: Any) -> None:
    for path in paths(described(config)[0]):
        reading = examined(config, path, junk)
        assert reading.deviations or reading.model is not None


def test_all_deviations_are_found_at_once_and_the_first_are_raised() -> None:
    json, shapes = described(P3)
    for key in ("select_layer", "downsample_ratio", "use_llm_lora", "use_backbone_lora"):
        json[key] = 7
    json["llm_config"] |= {"hidden_act": "relu", "tie_word_embeddings": True, "model_type": "llama"}
    assert len(examine_config(json, {}, shapes).deviations) == 7
    with pytest.raises(CheckpointError, match=r"; and 2 more: list them with trol-export --check$"):
        read_model_config(json, {}, shapes)


def test_a_position_table_that_is_no_square_is_refused() -> None:
    json, shapes = described(I2)
    shapes["vit.vision_tower.vision_model.embeddings.position_embedding.weight"] = (16, 16)
    reading = examine_config(json, {}, shapes)
    assert (
        "the position table of the vision tower has 16 rows, expected 1 + a square number of patches"
        in reading.deviations
    )


def test_an_odd_grid_cannot_be_pixel_shuffled() -> None:
    json, shapes = described(P3, vit={"image_size": 36}, top={"force_image_size": 36})
    reading = examine_config(json, {}, shapes)
    assert reading.deviations == [
        "config.json vision_config: 'image_size' is 36, expected an even grid of patches for the pixel shuffle, not 9"
    ]


def test_lora_ranks_must_agree() -> None:
    json, shapes = described(I2)
    shapes["model.layers.1.feed_forward.w2.lora_A.weight"] = (5, 48)
    assert examine_config(json, {}, shapes).deviations == [
        "partial LoRA: 'model.layers.1.feed_forward.w2.lora_A.weight' has rank 5, "
        "'model.layers.0.attention.wqkv.lora_A.weight' has 8, expected one rank everywhere"
    ]


# The small configs here have smaller tiles than the released model.
TILE_NOTE = (
    "config.json vision_config: tiles are 32 pixels a side, as the position table has them; the official code cuts 448 "
    "whatever the config says and interpolates the table"
)


def test_tiles_of_another_size_than_the_official_code_cuts_are_a_note() -> None:
    json, shapes = described(P3)
    assert examine_config(json, {}, shapes).notes == [TILE_NOTE]


def test_the_heads_of_internvit_are_required_as_its_official_default_is_another_models() -> None:
    json, shapes = described(P3)
    del json["vision_config"]["num_attention_heads"]
    (deviation,) = examine_config(json, {}, shapes).deviations
    assert "'num_attention_heads' is missing, expected an integer from 1 to" in deviation


def test_unknown_keys_and_generation_settings_are_notes() -> None:
    json, shapes = described(P3)
    json["vision_config"]["register_tokens"] = 4
    json["llm_config"]["logit_softcap"] = 30.0
    reading = examine_config(json, {"repetition_penalty": 1.1, "temperature": 0.7}, shapes)
    assert reading.deviations == []
    assert reading.notes == [
        TILE_NOTE,
        "config.json vision_config: 'register_tokens' (4) is unknown and has no effect here",
        "generation_config.json: 'repetition_penalty' is 1.1: greedy decoding here does not apply it",
        "config.json llm_config: 'logit_softcap' (30.0) is unknown and has no effect here",
    ]


@pytest.mark.parametrize(
    ("generation", "top", "llm", "expected"),
    [
        pytest.param({"eos_token_id": [5, 7]}, 2, 3, (5, 7), id="generation_config.json first"),
        pytest.param({}, 2, 3, (2,), id="then config.json"),
        pytest.param({}, ABSENT, 3, (3,), id="then the trunk's config"),
    ],
)
def test_generation_stops_where_the_first_file_says(
    generation: dict[str, Any], top: Any, llm: int, expected: tuple[int, ...]
) -> None:
    json, shapes = described(P3)
    changed(json, "eos_token_id", top)
    json["llm_config"]["eos_token_id"] = llm
    model = read_model_config(json, generation, shapes)
    assert model.eos_token_ids == expected
    # The official loader sets pad = eos.
    assert model.pad_token_id == expected[0]


def test_phi3_stops_at_the_tokenizers_end_of_sequence_whatever_the_configs_say() -> None:
    json, shapes = described(P3)
    model = read_model_config(json, {"eos_token_id": [5, 7]}, shapes, TokenIds({"</s>": 2, "<s>": 4}, eos=2))
    assert (model.eos_token_ids, model.bos_token_id) == ((2,), 4)


def test_internlm2_stops_where_its_configs_say() -> None:
    json, shapes = described(I2)
    model = read_model_config(json, {"eos_token_id": [5, 7]}, shapes, TokenIds({"</s>": 2}, eos=2))
    assert model.eos_token_ids == (5, 7)


def test_the_tokenizers_image_token_wins_and_the_disagreement_is_noted() -> None:
    json, shapes = described(P3)
    reading = examine_config(json, {}, shapes, TokenIds({"<IMG_CONTEXT>": 311}, eos=None))
    assert reading.model is not None
    assert reading.model.image_token_id == 311
    assert reading.notes == [
        TILE_NOTE,
        "config.json: 'image_token_index' is 310, the tokenizer has '<IMG_CONTEXT>' at 311: "
        "the tokenizer is followed, as by the official loader",
    ]


def test_an_image_token_without_an_embedding_is_refused() -> None:
    json, shapes = described(P3)
    reading = examine_config(json, {}, shapes, TokenIds({"<IMG_CONTEXT>": 320}, eos=None))
    assert reading.deviations == [
        "tokenizer: '<IMG_CONTEXT>' is 320, expected an id below the 320 rows of the embedding"
    ]


def test_internlm2_has_its_image_token_behind_the_vocabulary_unless_a_file_says_otherwise() -> None:
    json, shapes = described(I2)
    del json["image_token_index"]
    assert read_model_config(json, {}, shapes).image_token_id == 320
    assert read_model_config(json, {}, shapes, TokenIds({"<image>": 7}, eos=None)).image_token_id == 7
