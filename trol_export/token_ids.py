"""The ids that a checkpoint's own tokenizer files give to pieces by name.

The official loader takes the image token, and for phi3 the end of sequence, from the tokenizer, not from config.json.
Whether the tokenizer itself is sound is `tokenizer_conversion`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trol_export.checkpoint import read_optional_json_object
from trol_export.tokenizer_conversion import read_eos_piece, read_sentencepiece

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


# Of an id: any more is no id, and Python refuses to read thousands.
_MOST_DIGITS = 18


@dataclass(frozen=True)
class TokenIds:
    """What tokenizer files say: every piece's id, and the id of the end of sequence."""

    by_piece: Mapping[str, int]
    eos: int | None


NO_TOKENIZER = TokenIds({}, None)


def read_token_ids(directory: Path) -> TokenIds:
    """The ids in a checkpoint's tokenizer files, `NO_TOKENIZER` without them; CheckpointError for damaged ones."""
    by_piece = _ids_by_piece(directory)
    return TokenIds(by_piece, by_piece.get(read_eos_piece(directory))) if by_piece else NO_TOKENIZER


def _ids_by_piece(directory: Path) -> dict[str, int]:
    """Added pieces win over the model's own, as in the official tokenizer classes."""
    tokenizer = read_optional_json_object(directory / "tokenizer.json")
    ids: dict[str, Any] = {}
    if tokenizer:
        ids.update(_object(_object(tokenizer, "model"), "vocab"))
    elif (directory / "tokenizer.model").exists():
        pieces = read_sentencepiece(directory / "tokenizer.model").pieces
        ids.update((piece.piece, i) for i, piece in enumerate(pieces))
    ids.update(read_optional_json_object(directory / "added_tokens.json"))
    added = tokenizer.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict):
            ids[str(entry.get("content"))] = entry.get("id")
    settings = read_optional_json_object(directory / "tokenizer_config.json")
    for number, entry in _object(settings, "added_tokens_decoder").items():
        if isinstance(entry, dict) and number.isdecimal() and len(number) <= _MOST_DIGITS:
            ids[str(entry.get("content"))] = int(number)
    return {piece: token for piece, token in ids.items() if type(token) is int}


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}
