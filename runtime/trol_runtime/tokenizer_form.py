"""What a tokenizer.json may hold: SentencePiece's BPE and the two steps around it, and nothing else that would run.

The tokenizers library reads far more: regular expressions, tables in binary, a step that makes a thousand characters of
one. Some of it takes forever, some ends the process. So the form is checked before the library sees the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_SPACE = "▁"  # how SentencePiece writes a space

_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_TEXT = {"String": _SPACE}
_DECODERS = ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace")


def read_sentencepiece_form(data: bytes) -> dict[str, Any]:
    """The tokenizer.json in `data`, parsed. Raises ValueError or RecursionError unless it has the form."""
    # Of a key that stands twice the library would read the other value than the one which was checked.
    tokenizer = json.loads(data.decode(), object_pairs_hook=_unique_keys)
    require_sentencepiece_form(tokenizer)
    return tokenizer


def require_sentencepiece_form(tokenizer: Any) -> None:
    """Raise ValueError, saying what was found, unless this parsed tokenizer.json is SentencePiece BPE.

    Whether pieces, ids and merges fit together is the library's part.
    """
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    if not isinstance(model, dict):
        raise ValueError("has no model")
    kind = model.get("type", "BPE")
    if kind != "BPE" or model.get("byte_fallback") is not True:
        raise ValueError(f"holds a {kind} model without byte fallback")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise ValueError(f"has a model with {setting} {model[setting]!r}")
    for step in _steps(tokenizer, "normalizer", "normalizers"):
        if step not in (_PREPEND, _REPLACE):
            raise ValueError(f"has a normalizer that does more than to write spaces as {_SPACE}: {step}")
    for step in _steps(tokenizer, "pre_tokenizer", "pretokenizers"):
        if step.get("type") != "Metaspace" or step.get("replacement") != _SPACE:
            raise ValueError(f"has a pre_tokenizer that does more than to write spaces as {_SPACE}: {step}")
    for step in _steps(tokenizer, "decoder", "decoders"):
        if step.get("type") not in _DECODERS or step.get("pattern", _TEXT) != _TEXT:
            raise ValueError(f"has a decoder that does more than to write {_SPACE} as spaces and bytes as text: {step}")
    for step in _steps(tokenizer, "post_processor", "processors"):
        if step.get("type") != "TemplateProcessing":
            raise ValueError(f"has a post_processor that does more than to add marks: {step}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("holds a key twice")
    return values


def _steps(tokenizer: dict[str, Any], part: str, listed: str) -> Iterator[dict[str, Any]]:
    """The part's only step, or those of the sequence that it is."""
    value = tokenizer.get(part)
    steps = value.get(listed) if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    if not isinstance(steps, list):
        raise ValueError(f"has a {part} that is a sequence without {listed}")
    for step in steps:
        if isinstance(step, dict):
            yield step
        elif step is not None:
            raise ValueError(f"has a {part} with a step that is no object: {step!r}")
