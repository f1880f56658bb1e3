"""Whether a manifest describes a model that can be: its numbers in bounds, and true to the graphs it lists.

A manifest's hash shows that it is whole, not that it makes sense. Before anything is laid out by its numbers they are
held against each other, so that a file written to do harm is refused like one that was damaged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from trol_runtime.errors import EngineFileError
from trol_runtime.manifest import GraphEntry, GraphValue, Manifest
from trol_runtime.model_config import Decoder, ModelConfig
from trol_runtime.prompt import PromptTemplate

# More than any model has, and the bytes of a tensor of two such sizes still fit 64 bits.
MOST = 2**24
MOST_LAYERS = 1000
MOST_PIXELS_A_SIDE = 2**14
MOST_PIECE_CHARACTERS = 256

_CACHE = re.compile(r"(?:past_key_values|present|past_second_pass|present_second_pass)\.(\d{1,4})\.(?:key|value)")


def require_possible(manifest: Manifest) -> None:
    """Raise EngineFileError naming the first key whose value no engine has."""
    for problem in _problems(manifest):
        raise EngineFileError(f"manifest.json: {problem}; export the engine again")


def _problems(manifest: Manifest) -> Iterator[str]:
    model = manifest.model
    yield from _sizes(model)
    yield from _tokens(model)
    yield from _rope(model.decoder)
    yield from _limits(manifest)
    if manifest.prompt is not None:
        yield from _prompt(manifest.prompt)
    for role, graph in manifest.graphs.items():
        yield from _graph(role, graph, model)


def _sizes(model: ModelConfig) -> Iterator[str]:
    vision, decoder = model.vision, model.decoder
    for name, part in (("vision", vision), ("decoder", decoder)):
        for key, value in vars(part).items():
            at_least, at_most = (0 if key == "lora_rank" else 1), (MOST_LAYERS if key == "layers" else MOST)
            if type(value) is int and not at_least <= value <= at_most:
                yield f"'model.{name}.{key}' is {value}, expected {at_least} to {at_most}"
    for key, eps in (("vision.layer_norm_eps", vision.layer_norm_eps), ("decoder.rms_norm_eps", decoder.rms_norm_eps)):
        if not _is_positive(eps):
            yield f"'model.{key}' is {eps}, expected a number above 0"
    if decoder.hidden_size % (2 * decoder.heads) or decoder.heads % decoder.kv_heads:
        yield (
            f"hidden_size {decoder.hidden_size}, heads {decoder.heads} and kv_heads {decoder.kv_heads} "
            "of 'model.decoder' do not divide each other"
        )
    if vision.image_size > MOST_PIXELS_A_SIDE:
        yield f"'model.vision' has {vision.image_size} pixels a side, expected {MOST_PIXELS_A_SIDE} or fewer"


def _tokens(model: ModelConfig) -> Iterator[str]:
    ids = {
        "image_token_id": model.image_token_id,
        "bos_token_id": model.bos_token_id,
        "pad_token_id": model.pad_token_id,
        **{f"eos_token_ids[{i}]": token for i, token in enumerate(model.eos_token_ids)},
    }
    rows = model.decoder.embedding_rows
    for key, token in ids.items():
        if not 0 <= token < rows:
            yield f"'model.{key}' is {token}, expected a row of the {rows} in the embedding table"


def _rope(decoder: Decoder) -> Iterator[str]:
    rope, pairs = decoder.rope, decoder.head_dim // 2
    if not _is_positive(rope.theta):
        yield f"'model.decoder.rope.theta' is {rope.theta}, expected a number above 0"
    if rope.kind == "default":
        return
    for key, factors in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
        if len(factors) != pairs or not all(map(_is_positive, factors)):
            yield f"'model.decoder.rope.{key}' is not {pairs} numbers above 0"
    if not 2 <= rope.original_max_positions <= MOST or not 1 <= rope.max_positions <= MOST:
        yield (
            f"'model.decoder.rope' is for {rope.original_max_positions} and {rope.max_positions} positions, "
            f"expected 2 to {MOST}"
        )


def _limits(manifest: Manifest) -> Iterator[str]:
    positions = manifest.model.decoder.max_positions
    if not 1 <= manifest.limits.max_seq <= positions:
        yield f"'limits.max_seq' is {manifest.limits.max_seq}, expected 1 to the model's {positions} positions"
    if not 1 <= manifest.limits.max_batch <= MOST:
        yield f"'limits.max_batch' is {manifest.limits.max_batch}, expected 1 to {MOST}"
    new_tokens = manifest.generation.get("max_new_tokens", 1)
    if type(new_tokens) is not int or new_tokens < 1:
        yield f"'generation.max_new_tokens' is {new_tokens!r}, expected a whole number, 1 or more"


def _prompt(prompt: PromptTemplate) -> Iterator[str]:
    for key, mark in (("image_piece", prompt.image_piece), ("turn_end", prompt.turn_end)):
        if not mark:
            yield f"'prompt.{key}' is empty, expected a piece of the tokenizer"
    if "" in prompt.marks:
        yield "'prompt.marks' holds an empty text, expected pieces of the tokenizer"
    longest = max(map(len, prompt.control_pieces))
    if longest > MOST_PIECE_CHARACTERS:
        yield f"'prompt' has a piece of {longest} characters, expected {MOST_PIECE_CHARACTERS} or fewer"


def _graph(role: str, graph: GraphEntry, model: ModelConfig) -> Iterator[str]:
    """Where the interface that the manifest gives for a graph is not the model's."""
    for value in (*graph.inputs, *graph.outputs):
        expected = _last_axes(value, role, model)
        last = value.shape[len(value.shape) - len(expected) :]
        wrong = [axis for axis, size in zip(last, expected, strict=False) if isinstance(axis, int) and axis != size]
        if len(last) != len(expected) or wrong:
            yield f"{value.name!r} of graph {role!r} is {list(value.shape)}, expected {list(expected)} at its end"
    layers = {int(found[1]) for value in graph.outputs if (found := _CACHE.fullmatch(value.name))}
    if layers and layers != set(range(model.decoder.layers)):
        yield f"graph {role!r} has {len(layers)} layers, expected the {model.decoder.layers} of 'model.decoder'"


def _last_axes(value: GraphValue, role: str, model: ModelConfig) -> tuple[int, ...]:
    """The sizes that the model gives the last axes of a graph's value; () for one that it says nothing of."""
    vision, decoder = model.vision, model.decoder
    side = vision.image_size
    known: dict[str, tuple[int, ...]] = {
        "pixel_values": (3, side, side),
        "image_embeds": (vision.tokens_per_crop, decoder.hidden_size) if role == "vision" else (decoder.hidden_size,),
        "logits": (decoder.vocab_size,),
        "cos": (decoder.head_dim // 2,),
        "sin": (decoder.head_dim // 2,),
    }
    return (decoder.head_dim,) if _CACHE.fullmatch(value.name) else known.get(value.name, ())


def _is_positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)
