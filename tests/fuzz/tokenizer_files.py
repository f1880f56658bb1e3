"""A checkpoint's tokenizer files, changed: `tokenizer.json` or `tokenizer.model`, and the JSON files beside them.

What is converted must be usable: the runtime reads it, every id of a prompt has a row in the embedding table, and all
ids can be turned back into text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

from fuzz.case import Case, Rule, WrongAnswerError
from fuzz.mutations import damaged_bytes, damaged_json, json_bytes
from fuzz.seeds import ARCHS, engine_path
from golden.tiny_tokenizer import tiny_tokenizer
from trol_export.token_ids import read_token_ids
from trol_export.tokenizer_conversion import check_tokenizer, convert_tokenizer
from trol_runtime.bundle import Bundle
from trol_runtime.model_config import ModelConfig
from trol_runtime.prompt import Arch, official_template
from trol_runtime.tokenizer import TextTokenizer

JSON_FILE, MODEL_FILE = "tokenizer.json", "tokenizer.model"
QUESTION = "What's  the\tpicture?\n é中\U0001f600 <0x0A> ▁ </s><|end|>[UNUSED_TOKEN_145]"
# What a released tokenizer.json may hold besides, so that there is something to damage.
_FURTHER_PARTS: dict[str, Any] = {
    "truncation": {"direction": "Right", "max_length": 4096, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
    },
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    },
}  # fmt: skip
# Parts that the library has and SentencePiece has not: some take a pattern, some a table, some panic.
STRANGE_PARTS: tuple[dict[str, Any], ...] = (
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True}},
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    {"pre_tokenizer": {"type": "Whitespace"}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": "(x|x)*y"}, "content": ""}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}},
    {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "▁"}},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    {"normalizer": {"type": "NFKC"}},
    {"normalizer": {"type": "Prepend", "prepend": ""}},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁" * 1000}] * 50}},
    {"decoder": {"type": "Strip", "content": "x", "start": 2**40, "stop": 2**40}},
    {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
    {"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7, "byte_fallback": True}},
    {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 0}},
)


class TokenizerFiles:
    """Values and parts of tokenizer.json, pieces and settings of tokenizer.model, the files beside, and bytes."""

    name = "tokenizer files"
    seeds = tuple(f"{arch} {form}" for arch in ARCHS for form in ("json", "model"))

    def __init__(self, seeds: Path) -> None:
        self._configs: dict[str, ModelConfig] = {
            arch: Bundle.open(engine_path(seeds, arch)).manifest.model for arch in ARCHS
        }
        self._json: dict[str, Any] = {arch: {**tiny_tokenizer(arch), **_FURTHER_PARTS} for arch in _ARCHS}
        self._converted: dict[str, bytes] = {}

    @property
    def systematic(self) -> int:
        return 0

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, self._files(seed))

    def case(self, number: int) -> Case:
        rng = Random(f"{self.name} {number}")
        seed = rng.choice(self.seeds)
        files = self._files(seed)
        name = rng.choice((JSON_FILE, JSON_FILE, JSON_FILE, *files))
        name = name if name in files else MODEL_FILE
        if rng.random() < 0.2:
            data, change = damaged_bytes(files[name], rng)
        elif name == MODEL_FILE:
            data, change = _damaged_model(files[name], rng)
        elif name == JSON_FILE and rng.random() < 0.3:
            part = rng.choice(STRANGE_PARTS)
            document = json.loads(files[name])
            data, change = json_bytes({**document, **_merged(document, part)}), f"has {part}"
        else:
            data, change = damaged_json(json.loads(files[name]), rng)
        return Case(number, seed, f"{name}: {change}"[:300], Rule.OWN, {**files, name: data})

    def read(self, folder: Path, case: Case) -> bool:
        arch = case.seed.split()[0]
        config = self._configs[arch]
        read_token_ids(folder)
        deviations = check_tokenizer(folder, config)
        converted = convert_tokenizer(folder, config)
        if deviations:
            raise WrongAnswerError(f"converted in spite of {deviations}")
        tokenizer = TextTokenizer(converted, official_template(config.arch))
        ids = tokenizer.encode_prompt(QUESTION, [1], 4)
        rows = config.decoder.embedding_rows
        if not ((ids >= 0) & (ids < rows)).all():
            raise WrongAnswerError(f"ids from {ids.min()} to {ids.max()} for {rows} rows of the embedding table")
        tokenizer.decode(range(rows))
        if case.number < 0:
            self._converted[case.seed] = converted
        return converted == self._converted[case.seed]

    def extra_memory(self, case: Case) -> int:
        return 0

    def _files(self, seed: str) -> dict[str, bytes]:
        arch, _, form = seed.partition(" ")
        if form == "json":
            return {JSON_FILE: json_bytes(self._json[arch])}
        return {MODEL_FILE: _sentencepiece(self._json[arch]), **_FILES_BESIDE[arch]}


_ARCHS: tuple[Arch, ...] = ("internlm2", "phi3")


def _added(content: str, special: bool = True, rstrip: bool = False) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": rstrip, "single_word": False, "special": special}
    return {"content": content, **flags}


_FILES_BESIDE: dict[str, dict[str, bytes]] = {
    "internlm2": {
        "tokenizer_config.json": json_bytes({"eos_token": "</s>", "add_prefix_space": False}),
        "special_tokens_map.json": json_bytes({"eos_token": "</s>", "additional_special_tokens": ["<image>"]}),
        "added_tokens.json": json_bytes({"<image>": 1000}),
    },
    "phi3": {
        "tokenizer_config.json": json_bytes({
            "legacy": False,
            "eos_token": "<|end|>",
            "added_tokens_decoder": {"993": _added("<|system|>", rstrip=True), "996": _added("<|end|>", rstrip=True)},
        }),
    },
}  # fmt: skip


def _merged(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Half of the strange models keep the pieces, so that they are not refused for lacking them."""
    return {"model": {**document["model"], **part["model"]}} if len(part.get("model", {})) == 3 else part


def _sentencepiece(tokenizer: dict[str, Any]) -> bytes:
    """The same pieces as a SentencePiece BPE model."""
    model, kind = ModelProto(), ModelProto.SentencePiece
    added = {token["content"] for token in tokenizer["added_tokens"]}
    pieces = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    for piece, number in pieces:
        if piece in ("<unk>", "<s>", "</s>"):
            of_type = kind.UNKNOWN if piece == "<unk>" else kind.CONTROL
        elif piece in added:
            of_type = kind.USER_DEFINED
        else:
            of_type = kind.BYTE if piece.startswith("<0x") else kind.NORMAL
        model.pieces.add(piece=piece, score=-float(number), type=of_type)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def _damaged_model(data: bytes, rng: Random) -> tuple[bytes, str]:
    """One piece or one setting of the model changed."""
    model = ModelProto.FromString(data)
    change = rng.choice(_MODEL_CHANGES)
    detail = change(model, rng)
    return model.SerializeToString(), f"{change.__name__.strip('_').replace('_', ' ')} {detail}"


_PIECES = ("", " ", "\0", "▁", "<0x41>", "<0xZZ>", "</s>", "a", "ab" * 20_000, "▁" * 3000, "\n", "\u202e", "é")


def _another_piece(model: Any, rng: Random) -> str:
    piece = rng.choice(model.pieces)
    piece.piece = rng.choice((*_PIECES, piece.piece * 2))
    return f"{piece.piece[:40]!r} {len(piece.piece)}"


def _another_score(model: Any, rng: Random) -> str:
    piece = rng.choice(model.pieces)
    piece.score = rng.choice((float("nan"), float("inf"), float("-inf"), 0.0, 1e30, -1e-30))
    return f"of {piece.piece!r}: {piece.score}"


def _another_type(model: Any, rng: Random) -> str:
    piece = rng.choice(model.pieces)
    piece.type = rng.randint(1, 6)
    return f"of {piece.piece!r}: {piece.type}"


def _pieces_more_or_less(model: Any, rng: Random) -> str:
    how = rng.choice(("doubled", "cut", "many", "none"))
    if how == "doubled":
        model.pieces.append(rng.choice(model.pieces))
    elif how == "cut":
        del model.pieces[rng.randrange(len(model.pieces)) :]
    elif how == "many":
        for number in range(3000):
            model.pieces.add(piece=f"more{number}", score=-1.0, type=1)
    else:
        del model.pieces[:]
    return how


_BYTES, _TEXTS = (b"", b"\xff\xfe", b"x" * 5000), ("", "a", "<s>", "x" * 5000)


def _another_setting(model: Any, rng: Random) -> str:
    spec = rng.choice((model.trainer_spec, model.normalizer_spec))
    field = rng.choice(spec.DESCRIPTOR.fields)
    if field.is_repeated:
        return "none"
    value: Any = {
        field.CPPTYPE_STRING: rng.choice(_BYTES if field.type == field.TYPE_BYTES else _TEXTS),
        field.CPPTYPE_BOOL: rng.random() < 0.5,
        field.CPPTYPE_ENUM: rng.randint(1, 4),
        field.CPPTYPE_FLOAT: rng.choice((0.0, -1.0, float("nan"))),
    }.get(field.cpp_type, rng.choice((0, 1, 2**31 - 1)))
    setattr(spec, field.name, value)
    return f"{field.name}: {str(value)[:40]!r}"


_MODEL_CHANGES: tuple[Callable[[Any, Random], str], ...] = (
    *(_another_piece, _another_piece, _another_score, _another_type, _pieces_more_or_less, _another_setting),
)
