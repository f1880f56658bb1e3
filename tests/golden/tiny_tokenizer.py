"""Writes a small `tokenizer.json` of our own beside a tiny checkpoint, so that it runs from text to text.

    python tests/golden/tiny_tokenizer.py internlm2 OUT

SentencePiece-like: an ASCII character is one piece, anything else falls back to byte pieces, pairs of letters merge.
It fills 1000 ids and holds the official marks where the golden checkpoints expect them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from trol_runtime.prompt import Arch

VOCAB_SIZE = 1000

_MARKS = {
    "internlm2": {"[UNUSED_TOKEN_145]": 998, "[UNUSED_TOKEN_146]": 999},  # <image> is 1000, added at export
    # The picture pieces as in the golden prompts: <img> and </img> are the two ids after <IMG_CONTEXT>.
    "phi3": {
        **{"<IMG_CONTEXT>": 990, "<img>": 991, "</img>": 992},
        **{"<|system|>": 993, "<|user|>": 994, "<|assistant|>": 995, "<|end|>": 996, "<|endoftext|>": 997},
    },
}
_SWALLOWS_WHITE_SPACE = frozenset(["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"])
_LETTERS_BY_FREQUENCY = "etaoinshrdlcumwfgypbvkjxqz"


def tiny_tokenizer(arch: Arch) -> dict[str, Any]:
    """The content of `tokenizer.json`; "phi3" puts a space in front of each text, as the released tokenizer does."""
    marks = {"<unk>": 0, "<s>": 1, "</s>": 2, **_MARKS[arch]}
    vocab = dict(marks)
    taken = set(marks.values())
    free = (i for i in range(VOCAB_SIZE) if i not in taken)
    vocab.update(zip(_single_pieces(), free))  # noqa: B905 - ids are left over for the pairs
    pairs = list(zip(_pairs(), free))  # noqa: B905 - there are more pairs than ids
    vocab.update(("".join(pair), i) for pair, i in pairs)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = [{"type": "Prepend", "prepend": "▁"}] if arch == "phi3" else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if arch == "phi3" else []
    to_space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "added_tokens": [_added_token(piece, i) for piece, i in sorted(marks.items(), key=lambda item: item[1])],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]},
        "decoder": {"type": "Sequence", "decoders": [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [list(pair) for pair, _ in pairs],
        },
    }


def write_tiny_tokenizer(arch: Arch, directory: Path) -> Path:
    """Write `directory/tokenizer.json` and return its path."""
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(tiny_tokenizer(arch), ensure_ascii=False), encoding="utf-8")
    return path


def _single_pieces() -> Iterator[str]:
    yield from (f"<0x{byte:02X}>" for byte in range(256))
    yield "▁"
    yield from (chr(code) for code in range(ord("!"), ord("~") + 1))


def _pairs() -> Iterator[tuple[str, str]]:
    """Pairs of pieces in order of merging: a space and a letter, then two letters."""
    yield from (("▁", letter) for letter in _LETTERS_BY_FREQUENCY + _LETTERS_BY_FREQUENCY.upper())
    yield from product(_LETTERS_BY_FREQUENCY, repeat=2)


def _added_token(piece: str, token_id: int) -> dict[str, Any]:
    strips = piece in _SWALLOWS_WHITE_SPACE
    flags = {"single_word": False, "lstrip": False, "rstrip": strips, "normalized": False, "special": True}
    return {"id": token_id, "content": piece, **flags}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("arch", choices=sorted(_MARKS))
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    print(write_tiny_tokenizer(arguments.arch, arguments.directory))
