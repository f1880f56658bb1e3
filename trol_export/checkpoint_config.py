"""What a checkpoint's config.json means: a ModelConfig, or every reason why there is none.

Sizes of the vision tower and the LoRA rank come from the tensors' shapes and must agree with the config where it states
them. A value that changes arithmetic and is unknown or contradictory is a deviation, named with what was expected. Keys
that nothing here reads become notes. Defaults are those of the official code: CLIP-L/14 and InternViT-300M.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trol_export.checkpoint import MOST_LAYERS, require_none
from trol_export.config_section import Findings, Section, is_positive, is_token
from trol_export.token_ids import NO_TOKENIZER, TokenIds
from trol_runtime.model_config import ClipVision, Decoder, InternVitVision, ModelConfig, Rope
from trol_runtime.one_line import one_line
from trol_runtime.prompt import official_template

Shapes = Mapping[str, tuple[int, ...]]

# Keys that change nothing an engine computes: book-keeping, training, dropout (inactive in eval), and what the official
# code overwrites or never reads (its tiling function's defaults, its "v2" pixel shuffle, pad = eos).
INERT_KEYS = frozenset({
    "_name_or_path", "_commit_hash", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype",
    "model_type", "tokenizer_class", "id2label", "label2id", "problem_type", "finetuning_task",
    "task_specific_params", "pruned_heads", "prefix", "torchscript", "use_bfloat16", "return_dict",
    "output_attentions", "output_hidden_states", "use_cache", "attn_implementation", "_attn_implementation",
    "use_flash_attn", "chunk_size_feed_forward", "add_cross_attention", "cross_attention_hidden_size", "is_decoder",
    "is_encoder_decoder", "tie_encoder_decoder", "decoder_start_token_id", "sep_token_id", "tf_legacy_loss",
    "gradient_checkpointing", "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout",
    "dropout", "drop_path_rate", "embd_pdrop", "resid_pdrop", "dynamic_image_size", "min_dynamic_patch",
    "max_dynamic_patch", "use_thumbnail", "ps_version", "template", "pad2square", "pad_token_id",
})  # fmt: skip

# What would change greedy tokens, with the value that does not. config.json may hold them from older model libraries.
NEUTRAL_GENERATION: dict[str, Any] = {
    "do_sample": False, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": None, "bad_words_ids": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None, "sequence_bias": None, "guidance_scale": None, "num_beam_groups": 1,
}  # fmt: skip

# Settings of sampling and beam search; greedy decoding does not use them.
UNUSED_BY_GREEDY = frozenset({
    "temperature", "top_k", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_beams",
    "num_return_sequences", "length_penalty", "early_stopping", "diversity_penalty", "max_length", "max_new_tokens",
    "remove_invalid_values", "renormalize_logits", "output_scores", "return_dict_in_generate",
})  # fmt: skip

# Pixels a side of the tiles that the official code cuts for InternViT, whatever the config says.
OFFICIAL_TILE = 448
NEVER_READ = INERT_KEYS | UNUSED_BY_GREEDY | NEUTRAL_GENERATION.keys()

# Of a patch in pixels and of a picture in patches: tensors have the square of these.
MOST_ON_A_SIDE = 4096

# r of the official partial LoRA, for when no lora_A is there to tell.
OFFICIAL_LORA_RANK = 256


@dataclass(frozen=True)
class ConfigReading:
    """The outcome of `examine_config`; `model` is None when the sizes are not known."""

    model: ModelConfig | None
    deviations: list[str]
    notes: list[str]


def read_model_config(
    config: dict[str, Any], generation: dict[str, Any], shapes: Shapes, token_ids: TokenIds = NO_TOKENIZER
) -> ModelConfig:
    """The model that these files describe; raises one CheckpointError naming every deviation.

    config, generation: config.json and generation_config.json ({} if there is none)
    shapes:             tensor name -> shape
    """
    reading = examine_config(config, generation, shapes, token_ids)
    require_none(reading.deviations)
    assert reading.model is not None
    return reading.model


def examine_config(
    config: dict[str, Any], generation: dict[str, Any], shapes: Shapes, token_ids: TokenIds = NO_TOKENIZER
) -> ConfigReading:
    """Everything that `read_model_config` would refuse, all at once, and notes on what has no effect."""
    findings = Findings()
    top = Section("config.json", config, findings)
    defaults = Section("generation_config.json", generation, findings)
    arch: Literal["internlm2", "phi3"]
    vision: ClipVision | InternVitVision
    if "llm_config" in config:
        arch, trunk = "phi3", top.subsection("llm_config")
        vision, decoder = _internvit(top, shapes), _phi3_decoder(trunk)
    else:
        arch, trunk = "internlm2", top
        vision, decoder = _clip(top, shapes), _internlm2_decoder(top, shapes)
    sections = [defaults, top] if trunk is top else [defaults, top, trunk]
    eos = _eos(arch, sections, decoder.vocab_size, token_ids, findings)
    model = ModelConfig(
        arch=arch,
        vision=vision,
        decoder=decoder,
        image_token_id=_image_token(arch, top, decoder, token_ids, findings),
        eos_token_ids=eos,
        bos_token_id=_bos(sections, decoder.vocab_size, token_ids, findings),
        # The official loader sets pad = eos; the configs' own pad ids have no effect.
        pad_token_id=eos[0],
    )
    for section in sections:
        _note_generation(section)
        section.note_unread_keys(NEVER_READ)
    deviations, notes = map(one_line, findings.deviations), map(one_line, findings.notes)
    return ConfigReading(model if findings.sizes_known else None, list(deviations), list(notes))


# --- language trunks ----------------------------------------------------------------------------------------------


def _internlm2_decoder(trunk: Section, shapes: Shapes) -> Decoder:
    trunk.only("model_type", "internlm", "internlm2")
    scaling = trunk.get("rope_scaling")
    if scaling is not None and not (isinstance(scaling, dict) and scaling.get("type") == "dynamic"):
        trunk.deviates("rope_scaling", "null or type 'dynamic', which has no effect up to max_position_embeddings")
    vocab_size, positions = trunk.count("vocab_size"), trunk.count("max_position_embeddings")
    return Decoder(
        **_decoder_sizes(trunk),
        vocab_size=vocab_size,
        embedding_rows=vocab_size + 1,
        rope=Rope(trunk.positive("rope_theta")),
        max_positions=positions,
        lora_rank=_lora_rank(trunk, shapes),
        attention_bias=trunk.flag("bias", default="model.layers.0.attention.wqkv.ffn.bias" in shapes),
    )


def _phi3_decoder(trunk: Section) -> Decoder:
    trunk.only("model_type", "phi3")
    sizes = _decoder_sizes(trunk)
    vocab_size, positions = trunk.count("vocab_size"), trunk.count("max_position_embeddings")
    head_dim = sizes["hidden_size"] // sizes["heads"]
    # Once a row holds more keys than this the official attention drops the oldest; engines stop before.
    window = trunk.count("sliding_window", default=positions)
    return Decoder(
        **sizes,
        vocab_size=vocab_size,
        embedding_rows=vocab_size,
        rope=_phi3_rope(trunk, head_dim, positions),
        max_positions=min(positions, window),
    )


def _decoder_sizes(trunk: Section) -> dict[str, Any]:
    """The fields that both trunks state alike."""
    trunk.only("hidden_act", "silu")
    trunk.only("tie_word_embeddings", False)
    hidden, heads = trunk.count("hidden_size"), trunk.count("num_attention_heads")
    kv_heads = trunk.count("num_key_value_heads", default=heads)
    if hidden % (2 * heads):
        trunk.findings.sizes_known = False
        trunk.deviates("num_attention_heads", f"a divisor of hidden_size {hidden} that leaves heads of even size")
    if heads % kv_heads:
        trunk.findings.sizes_known = False
        trunk.deviates("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
    return {
        "hidden_size": hidden,
        "intermediate_size": trunk.count("intermediate_size"),
        "layers": trunk.count("num_hidden_layers", at_most=MOST_LAYERS),
        "heads": heads,
        "kv_heads": kv_heads,
        "rms_norm_eps": trunk.positive("rms_norm_eps"),
    }


def _phi3_rope(trunk: Section, head_dim: int, positions: int) -> Rope:
    """RoPE with the factors of `rope_scaling`; the keys allowed there are those the official config class allows."""
    theta = trunk.positive("rope_theta")
    if trunk.get("rope_scaling") is None:
        return Rope(theta)
    scaling = trunk.subsection("rope_scaling")
    if scaling.get("type") not in ("su", "yarn"):
        scaling.deviates("type", "'su' or 'yarn'")
        return Rope(theta)
    short, long = (_rope_factors(scaling, key, head_dim // 2) for key in ("short_factor", "long_factor"))
    for key in sorted(scaling.unread_keys()):
        scaling.deviates(key, "only type, short_factor and long_factor")
    # The logarithm of this scales the tables, so that 1 would divide by 0.
    original = trunk.count("original_max_position_embeddings", at_least=2)
    return Rope(theta, scaling.get("type"), short, long, original, positions)


def _rope_factors(scaling: Section, key: str, length: int) -> tuple[float, ...]:
    factors = scaling.get(key)
    if not isinstance(factors, list) or len(factors) != length or not all(map(is_positive, factors)):
        found = f" (found {len(factors)})" if isinstance(factors, list) else ""
        scaling.deviates(key, f"{length} numbers above 0, one per pair of a head's channels{found}")
        return (1.0,) * length
    return tuple(map(float, factors))


def _lora_rank(trunk: Section, shapes: Shapes) -> int:
    """Rows of the lora_A matrices, the same in every layer; the official scale alpha / r is 1."""
    ranks = {name: shape[0] for name, shape in shapes.items() if name.endswith(".lora_A.weight") and shape}
    if len(set(ranks.values())) > 1:
        name, other = min(ranks, key=lambda n: ranks[n]), max(ranks, key=lambda n: ranks[n])
        trunk.findings.deviations.append(
            f"partial LoRA: '{name}' has rank {ranks[name]}, '{other}' has {ranks[other]}, expected one rank everywhere"
        )
    return trunk.measured("lora_rank", max(ranks.values(), default=None), OFFICIAL_LORA_RANK)


# --- vision towers ------------------------------------------------------------------------------------------------


def _clip(top: Section, shapes: Shapes) -> ClipVision:
    """CLIP: the official config.json does not describe the tower; `vision_tower_config` is read where it exists."""
    section = top.subsection("vision_tower_config")
    section.only("hidden_act", "quick_gelu")
    section.only("num_channels", 3)
    sizes = _tower_sizes(section, shapes, "vit.vision_tower.vision_model.", grid=35, head_width=64)
    # The size the tower was pretrained at; the position table is stored for the size it runs at.
    section.get("image_size")
    tower = ClipVision(**sizes, layer_norm_eps=section.positive("layer_norm_eps", default=1e-5))
    section.note_unread_keys(NEVER_READ)
    return tower


def _internvit(top: Section, shapes: Shapes) -> InternVitVision:
    top.only("downsample_ratio", 0.5)
    top.only("select_layer", -1)
    top.only("use_backbone_lora", 0)
    top.only("use_llm_lora", 0)
    section = top.subsection("vision_config")
    section.only("hidden_act", "gelu")
    section.only("num_channels", 3)
    sizes = _tower_sizes(section, shapes, "vision_model.", grid=32, head_width=None)
    side = sizes["grid"] * sizes["patch_size"]
    for part, key in ((section, "image_size"), (top, "force_image_size")):
        if part.count(key, default=side) != side:
            part.deviates(
                key, f"{side}: the position table has {sizes['grid']} patches of {sizes['patch_size']} a side"
            )
    if side != OFFICIAL_TILE:
        section.findings.notes.append(
            f"{section.name}: tiles are {side} pixels a side, as the position table has them; the official code cuts "
            f"{OFFICIAL_TILE} whatever the config says and interpolates the table"
        )
    if sizes["grid"] % InternVitVision.shuffle:
        section.findings.sizes_known = False
        section.deviates("image_size", f"an even grid of patches for the pixel shuffle, not {sizes['grid']}")
    block = "vision_model.encoder.layers.0."
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm" if f"{block}norm1.bias" in shapes else "rms_norm"
    vision = InternVitVision(
        **sizes,
        layer_norm_eps=section.positive("layer_norm_eps", default=1e-6),
        norm_type=section.choice("norm_type", ("layer_norm", "rms_norm"), default=norm),
        qkv_bias=section.flag("qkv_bias", default=f"{block}attn.qkv.bias" in shapes),
        qk_normalization=section.flag("qk_normalization", default=f"{block}attn.q_norm.weight" in shapes),
    )
    section.note_unread_keys(NEVER_READ)
    return vision


def _tower_sizes(section: Section, shapes: Shapes, prefix: str, grid: int, head_width: int | None) -> dict[str, Any]:
    """Sizes of a vision transformer from its tensors' shapes; where tensors are missing, from the config.

    grid: patches per side of the official model, for when the position table is missing
    head_width: of the official tower, for when the config may leave out the heads; None: it may not
    """

    def axis(name: str, index: int) -> int | None:
        shape = shapes.get(prefix + name, ())
        return shape[index] if -len(shape) <= index < len(shape) and shape[index] > 0 else None

    hidden = section.measured("hidden_size", axis("embeddings.class_embedding", -1), 1024)
    patch = section.measured("patch_size", axis("embeddings.patch_embedding.weight", -1), 14, MOST_ON_A_SIDE)
    block = re.compile(re.escape(prefix) + r"encoder\.layers\.(\d+)\.")
    layers = len({found[1] for name in shapes if (found := block.match(name))})
    heads = section.count("num_attention_heads", default=max(hidden // head_width, 1) if head_width else None)
    if hidden % heads:
        section.findings.sizes_known = False
        section.deviates("num_attention_heads", f"a divisor of hidden_size {hidden}")
    return {
        "hidden_size": hidden,
        "intermediate_size": section.measured("intermediate_size", axis("encoder.layers.0.mlp.fc1.weight", 0), 4096),
        "layers": section.measured("num_hidden_layers", layers or None, 24, MOST_LAYERS),
        "heads": heads,
        "patch_size": patch,
        "grid": section.measured("grid", _grid(section, _position_rows(shapes, prefix)), grid, MOST_ON_A_SIDE),
    }


def _position_rows(shapes: Shapes, prefix: str) -> int | None:
    """Rows of the position table, (rows, width) in CLIP and (1, rows, width) in InternViT; None when missing."""
    table = prefix + "embeddings.position_embedding"
    shape = shapes.get(table, shapes.get(table + ".weight", ()))
    return shape[-2] if len(shape) >= 2 else None


def _grid(section: Section, rows: int | None) -> int | None:
    """Patches per side: the position table has a row for the class token and one per patch of a square."""
    if rows is None:
        return None
    grid = math.isqrt(max(rows - 1, 0))
    if grid == 0 or grid**2 + 1 != rows:
        section.findings.sizes_known = False
        section.findings.deviations.append(
            f"the position table of the vision tower has {rows} rows, expected 1 + a square number of patches"
        )
    return max(grid, 1)


# --- tokens -------------------------------------------------------------------------------------------------------


def _image_token(
    arch: Literal["internlm2", "phi3"], top: Section, decoder: Decoder, token_ids: TokenIds, findings: Findings
) -> int:
    """The official loader asks the tokenizer; else config.json; else internlm2's extra embedding row."""
    piece = official_template(arch).image_piece
    stated = top.token("image_token_index", limit=decoder.embedding_rows)
    named = token_ids.by_piece.get(piece)
    if named is None and stated is None and arch == "internlm2":
        return decoder.vocab_size
    if named is None and stated is None:
        top.deviates("image_token_index", f"the id of '{piece}': there is no tokenizer file that names it either")
    if named is not None and stated is not None and named != stated:
        findings.notes.append(
            f"config.json: 'image_token_index' is {stated}, the tokenizer has '{piece}' at {named}: "
            "the tokenizer is followed, as by the official loader"
        )
    if named is not None and named >= decoder.embedding_rows:
        findings.deviations.append(
            f"tokenizer: '{piece}' is {named}, expected an id below the {decoder.embedding_rows} rows of the embedding"
        )
    return named if named is not None else stated or 0


def _eos(
    arch: Literal["internlm2", "phi3"], sections: Iterable[Section], limit: int, token_ids: TokenIds, findings: Findings
) -> tuple[int, ...]:
    """Where generation stops: the first section that says so; for phi3 the tokenizer's mark comes before them all."""
    stated = [_token_list(section, "eos_token_id", limit) for section in sections]
    # The official phi3 wrapper passes the tokenizer's id to generate.
    if arch == "phi3" and token_ids.eos is not None:
        return (token_ids.eos,)
    found = next(filter(None, stated), ())
    if not found:
        findings.deviations.append("config.json: 'eos_token_id' is missing, expected the id at which generation stops")
    return found or (0,)


def _bos(sections: Iterable[Section], limit: int, token_ids: TokenIds, findings: Findings) -> int:
    stated = [section.token("bos_token_id", limit) for section in sections]
    found = next((i for i in (token_ids.by_piece.get("<s>"), *stated) if i is not None), None)
    if found is None:
        findings.deviations.append("config.json: 'bos_token_id' is missing, expected the id of '<s>'")
    return found or 0


def _token_list(section: Section, key: str, limit: int) -> tuple[int, ...]:
    """Token ids from a number or a list of numbers; () when absent."""
    value = section.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(is_token(i, limit) for i in ids):
        section.deviates(key, f"token ids from 0 to {limit - 1}")
        return (0,)
    return tuple(ids)


def _note_generation(section: Section) -> None:
    """Settings that would change the official code's greedy tokens and that engines do not apply."""
    for key, neutral in NEUTRAL_GENERATION.items():
        value = section.data.get(key, neutral)
        if value != neutral and value is not None:
            section.findings.notes.append(
                f"{section.name}: '{key}' is {value!r}: greedy decoding here does not apply it"
            )
