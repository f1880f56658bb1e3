"""A checkpoint's tokenizer files to the one `tokenizer.json` that an engine file holds.

`tokenizer.json` is taken when the checkpoint has one, else `tokenizer.model` (SentencePiece BPE) is converted together
with the added pieces of `tokenizer_config.json`, or of `added_tokens.json` and `special_tokens_map.json`. Either way:

1. The prompt template's marks, the image pieces and placeholders such as `[UNUSED_TOKEN_7]` are special: the runtime
   can then treat them as plain text when a user types them.
2. `<image>` of internlm2 is added at the first id after the vocabulary when the checkpoint does not name it.
3. A text gives the same ids on its own as it gives after a mark, which is where every text of a prompt stands.
4. What the model's config and the prompt template promise is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trol_export.checkpoint import read_json_object, read_optional_json_object
from trol_runtime.errors import CheckpointError
from trol_runtime.model_config import ModelConfig
from trol_runtime.one_line import one_line
from trol_runtime.prompt import PromptTemplate, official_template
from trol_runtime.tokenizer_form import require_sentencepiece_form

# Control pieces in all but name: SentencePiece has them as ordinary user-defined pieces.
_PLACEHOLDER = re.compile(r"\[UNUSED_TOKEN_\d+\]|<\|placeholder\d+\|>")

# Phi-3's own tokenizer swallows white space after these. `added_tokens.json` alone, a list of ids, cannot say so.
_PHI3_STRIP_RIGHT = frozenset(
    ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", *(f"<|placeholder{n}|>" for n in range(1, 7))]
)

# Released models have pieces of up to 128 characters; every cut of a piece is tried when merges are made of them.
_LONGEST_PIECE = 1000

# SentencePiece spells NUL with its byte piece although some models hold a piece for it.
_NOT_TEXT = frozenset("\0")


@dataclass(frozen=True)
class AddedPiece:
    """An entry of tokenizer.json's `added_tokens`: a piece found in the raw text before anything else is."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


def convert_tokenizer(directory: Path, config: ModelConfig) -> bytes:
    """`tokenizer.json` for the checkpoint in `directory`.

    Raises CheckpointError when the files are missing or unreadable, or when they deviate from what `config` and the
    prompt template promise (all deviations in one message).
    """
    tokenizer, source = _converted(directory, config)
    deviations = _deviations(tokenizer, source, config)
    if deviations:
        raise CheckpointError(f"{source}: {'; '.join(deviations)}; take the tokenizer files of the TroL checkpoint")
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()


def check_tokenizer(directory: Path, config: ModelConfig) -> list[str]:
    """Everything about the tokenizer files that would stop an export, one line each; empty when they are fine."""
    try:
        tokenizer, source = _converted(directory, config)
        return [f"{source.name}: {deviation}" for deviation in _deviations(tokenizer, source, config)]
    except CheckpointError as error:
        return [str(error)]


def read_eos_piece(directory: Path) -> str:
    """The piece that the tokenizer files name as end of sequence: where the official code stops phi3's generation."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_optional_json_object(directory / name).get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            return content
    return "</s>"  # the default of both official tokenizer classes


def read_sentencepiece(path: Path) -> Any:
    """The ModelProto in `path`; CheckpointError when it cannot be read or holds no pieces."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    model = ModelProto()
    try:
        data = path.read_bytes()
        model.ParseFromString(data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except DecodeError:
        model.Clear()
    if not model.pieces:
        raise CheckpointError(f"{path} ({len(data)} bytes) is not a SentencePiece model: download it again")
    return model


def _converted(directory: Path, config: ModelConfig) -> tuple[dict[str, Any], Path]:
    """The tokenizer under rules 1 to 3, and the file it comes from."""
    source = directory / "tokenizer.json"
    if source.exists():
        tokenizer = read_json_object(source)
        _require_sentencepiece_form(tokenizer, source)
    elif (source := directory / "tokenizer.model").exists():
        tokenizer = _tokenizer_from_sentencepiece(directory)
    else:
        raise CheckpointError(
            f"{directory} has neither tokenizer.json nor tokenizer.model: "
            "add the checkpoint's tokenizer files, or export with --no-tokenizer"
        )
    template = official_template(config.arch)
    if config.arch == "internlm2":
        _add_piece(tokenizer, template.image_piece, config.decoder.vocab_size)
    _make_special(tokenizer, template)
    _encode_alike_everywhere(tokenizer)
    return tokenizer, source


def _require_sentencepiece_form(tokenizer: dict[str, Any], path: Path) -> None:
    """Refuse what the runtime cannot turn back into text piece by piece (GPT-2's byte alphabet, WordPiece)."""
    try:
        require_sentencepiece_form(tokenizer)
    except ValueError as error:
        raise CheckpointError(
            f"{path} {one_line(error)}: expected SentencePiece BPE (▁ for a space, <0x0A> for a byte); "
            "take the tokenizer files of the TroL checkpoint"
        ) from None
    _load(tokenizer, path)
    tokenizer.setdefault("added_tokens", [])
    # The official code passes neither: prompts are never shortened or filled.
    tokenizer["truncation"] = tokenizer["padding"] = None


def _load(tokenizer: dict[str, Any], source: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(tokenizer))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing more specific; its panics are no Exception
        raise CheckpointError(
            f"{source} is not a tokenizer that the tokenizers library reads ({one_line(error)}): download it again"
        ) from None


def _add_piece(tokenizer: dict[str, Any], content: str, token_id: int) -> None:
    vocab = tokenizer["model"]["vocab"]
    if content not in vocab and all(token["content"] != content for token in tokenizer["added_tokens"]):
        vocab[content] = token_id
        tokenizer["added_tokens"].append(asdict(AddedPiece(token_id, content)))


def _make_special(tokenizer: dict[str, Any], template: PromptTemplate) -> None:
    """Rule 1: marks and placeholders are added pieces with `special` set, and no merge of characters makes one."""
    vocab, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    listed = {token["content"] for token in added}
    added += [asdict(AddedPiece(vocab[p], p)) for p in template.control_pieces if p in vocab and p not in listed]
    added.sort(key=lambda token: token["id"])  # the library wants them so
    for token in added:
        if token["content"] in template.control_pieces or _PLACEHOLDER.fullmatch(token["content"]):
            token["special"] = True
    special = {token["content"] for token in added if token["special"]}
    model = tokenizer["model"]
    model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in special]


def _merged(merge: str | list[str]) -> str:
    """The piece that a merge makes; files from before tokenizers 0.20 hold the pair as one string."""
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)


def _encode_alike_everywhere(tokenizer: dict[str, Any]) -> None:
    """Rule 3: a "▁" for the first text only never comes about, because a prompt begins with a mark."""
    pre_tokenizer = tokenizer.get("pre_tokenizer") or {}
    for step in (pre_tokenizer, *pre_tokenizer.get("pretokenizers", ())):
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"


def _deviations(tokenizer: dict[str, Any], source: Path, config: ModelConfig) -> list[str]:
    """Where ids differ from what the model's config and prompt template promise."""
    library = _load(tokenizer, source)
    template = official_template(config.arch)
    vocab = library.get_vocab(with_added_tokens=True)
    rows = config.decoder.embedding_rows
    found = [
        f"the piece {piece!r} of the {config.arch} prompt is missing"
        for piece in template.control_pieces
        if piece not in vocab
    ]
    image_id = vocab.get(template.image_piece, config.image_token_id)
    if image_id != config.image_token_id:
        found.append(
            f"{template.image_piece!r} has id {image_id}, but config.json has image_token_index {config.image_token_id}"
        )
    beyond = sorted((token, piece) for piece, token in vocab.items() if token >= rows)
    if beyond:
        token, piece = beyond[0]
        found.append(
            f"{len(beyond)} pieces from {piece!r} (id {token}) have no row among the {rows} of the embedding table"
        )
    pieces: dict[int, list[str]] = {}
    for piece, token in vocab.items():
        pieces.setdefault(token, []).append(piece)
    found += [f"{sorted(same)} share id {token}" for token, same in pieces.items() if len(same) > 1]
    return [one_line(deviation) for deviation in found]


def _tokenizer_from_sentencepiece(directory: Path) -> dict[str, Any]:
    model = read_sentencepiece(directory / "tokenizer.model")
    _require_plain_bpe(model, directory / "tokenizer.model")
    kind = model.SentencePiece
    pieces = [piece.piece for piece in model.pieces]
    added = {
        i: AddedPiece(i, piece.piece, special=piece.type != kind.USER_DEFINED)
        for i, piece in enumerate(model.pieces)
        if piece.type in (kind.CONTROL, kind.UNKNOWN, kind.USER_DEFINED)
    }
    # Where a file renames an id of the model, the model's own piece stays: it is what SentencePiece finds in a text.
    configured = _configured_pieces(directory)
    added |= {i: piece for i, piece in configured.items() if i >= len(pieces) or pieces[i] == piece.content}
    scores = {
        piece.piece: piece.score for piece in model.pieces if piece.type == kind.NORMAL and piece.piece not in _NOT_TEXT
    }
    vocab = {piece: i for i, piece in enumerate(pieces) if piece not in _NOT_TEXT}
    prefix = model.normalizer_spec.add_dummy_prefix and _prefixes_every_text(directory)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [asdict(piece) for piece in added.values()],
        "normalizer": _normalizer(prefix),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.trainer_spec.unk_piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab | {piece.content: i for i, piece in added.items()},
            "merges": _merges(scores, vocab),
        },
    }


def _require_plain_bpe(model: Any, path: Path) -> None:
    """Refuse settings under which SentencePiece changes or divides text otherwise."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    expected = {
        "model_type BPE": trainer.model_type == trainer.BPE,
        "byte_fallback on": trainer.byte_fallback,
        "treat_whitespace_as_suffix off": not trainer.treat_whitespace_as_suffix,
        "no normalization of characters": not normalizer.precompiled_charsmap,
        "remove_extra_whitespaces off": not normalizer.remove_extra_whitespaces,
        "escape_whitespaces on": normalizer.escape_whitespaces,
    }
    wrong = [name for name, holds in expected.items() if not holds]
    if any(len(piece.piece) > _LONGEST_PIECE for piece in model.pieces):
        wrong.append(f"pieces of at most {_LONGEST_PIECE} characters")
    if wrong:
        raise CheckpointError(f"{path}: expected {', '.join(wrong)}; take the tokenizer files of the TroL checkpoint")


def _merges(scores: dict[str, float], vocab: Collection[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first.

    SentencePiece merges the neighbours that make the best-scored piece, the leftmost of equals; a BPE model knows
    ranked pairs instead. Of pairs of equal score the longer left part goes first, as in the official conversion.
    """
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    pairs.sort(key=lambda pair: (-scores[pair[0] + pair[1]], -len(pair[0]), -len(pair[1])))
    return pairs


def _normalizer(prefix: bool) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]} if prefix else spaces


def _decoder(prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {"type": "Sequence", "decoders": [*steps, strip] if prefix else steps}


def _prefixes_every_text(directory: Path) -> bool:
    """Whether SentencePiece's leading space goes before each text of a prompt, or (`legacy` false) only the first."""
    settings = read_optional_json_object(directory / "tokenizer_config.json")
    return settings.get("legacy") is not False and settings.get("add_prefix_space") is not False


def _configured_pieces(directory: Path) -> dict[int, AddedPiece]:
    """Pieces that the checkpoint's JSON files add, by id; `tokenizer_config.json` knows most about them."""
    named = read_optional_json_object(directory / "added_tokens.json")
    listed = read_optional_json_object(directory / "tokenizer_config.json").get("added_tokens_decoder", {})
    try:
        flags = {token["content"]: token for token in _special_tokens(directory) if isinstance(token, dict)}
        pieces = [_added_piece(id_, content, flags.get(content)) for content, id_ in named.items()]
        pieces += [_added_piece(int(id_), token["content"], token) for id_, token in listed.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory}: added_tokens.json, special_tokens_map.json or added_tokens_decoder of tokenizer_config.json "
            f"has an unexpected form ({one_line(repr(error))}): download them again"
        ) from None
    return {piece.id: piece for piece in pieces}


def _special_tokens(directory: Path) -> Iterator[Any]:
    for value in read_optional_json_object(directory / "special_tokens_map.json").values():
        yield from value if isinstance(value, list) else [value]


def _added_piece(token_id: int, content: str, flags: dict[str, Any] | None) -> AddedPiece:
    if type(token_id) is not int or type(content) is not str:
        raise TypeError(f"{content!r}: {token_id!r}")
    if flags is None:
        return AddedPiece(token_id, content, rstrip=content in _PHI3_STRIP_RIGHT)
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedPiece(token_id, content, **{name: bool(flags[name]) for name in names if name in flags})
