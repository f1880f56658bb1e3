"""TroL-tiny's tokenizer: whole words are one piece, printed words and numbers are read character by character.

The form is that of the released models, SentencePiece BPE. Merges make words of lower-case letters, then put a capital
in front of them, then a space: none joins two capitals, a space and a lone capital, or anything to a digit. So "CAT" is
C, A, T wherever it stands. Other words come out in fragments, characters beyond ASCII as bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer

from trol_runtime.prompt import official_template

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SPACE = "▁"  # how SentencePiece writes a space
PRINTABLE = [chr(code) for code in range(ord("!"), ord("~") + 1)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

_WORD = re.compile(r"(?<![A-Za-z])([A-Z]?)([a-z]+)(?![A-Za-z])")  # a capital, if it has one, and the rest

Merge = tuple[str, str]


def build_tokenizer(texts: Iterable[str]) -> dict[str, Any]:
    """The content of tokenizer.json whose words are those of `texts` and of the official prompt's turns.

    Each is a piece with a space before it and one without. The same whatever the order of `texts`. The ids are 0 up to
    the vocabulary's size; <image> is not among them: an export adds it behind them.
    """
    system_text, *turn_texts = _template_texts()
    merges = list(_merges([*texts, *turn_texts]))
    marks = dict.fromkeys([UNKNOWN, BEGIN, END, *sorted(official_template("internlm2").marks)])
    # Without repetition: different merges can make the same piece.
    pieces = dict.fromkeys([*marks, system_text, *BYTES, SPACE, "\n", *PRINTABLE, *map("".join, merges)])
    tokenizer = Tokenizer(
        BPE(
            vocab={piece: token for token, piece in enumerate(pieces)},
            merges=merges,
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    # The same in every prompt: one piece, found in the raw text, that says nothing else.
    tokenizer.add_tokens([AddedToken(system_text, normalized=False)])
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return json.loads(tokenizer.to_str())


def _template_texts() -> list[str]:
    """The texts between the marks of a prompt without question, the system's first."""
    return [segment.text for segment in official_template("internlm2").segments("", ()) if not segment.is_mark]


def _merges(texts: Iterable[str]) -> Iterator[Merge]:
    """Best first; those of a word's letters before those that put something in front of the word."""
    words = sorted({word for text in texts for word in _WORD.findall(text)})
    yield from _letter_merges(sorted({letters for _, letters in words}))
    yield from ((capital, letters) for capital, letters in words if capital)
    yield from ((SPACE, capital + letters) for capital, letters in words)


def _letter_merges(words: list[str]) -> list[Merge]:
    """Merges that make one piece of each of these words of lower-case letters, with few pieces on the way."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = WhitespaceSplit()
    # Training ends when every word is one piece: 26 letters and a merge per further letter of a word are no limit.
    # Each word counts once, so that what many words share comes first.
    trainer = BpeTrainer(vocab_size=26 + sum(map(len, words)), min_frequency=0, show_progress=False)
    trained.train_from_iterator(words, trainer)
    return [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
