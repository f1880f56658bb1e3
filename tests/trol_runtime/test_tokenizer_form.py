"""The form of tokenizer.json that the library is shown, and everything else that it would run or die of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from golden.tiny_tokenizer import tiny_tokenizer
from trol_runtime.prompt import Arch
from trol_runtime.tokenizer_form import read_sentencepiece_form, require_sentencepiece_form

METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_the_form_of_a_sentencepiece_model_is_taken(arch: Arch) -> None:
    require_sentencepiece_form(tiny_tokenizer(arch))


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": None, "pre_tokenizer": METASPACE},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [METASPACE]}},
        {"decoder": METASPACE},
        {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
    ],
)
def test_its_usual_variants_are_taken(part: dict[str, Any]) -> None:
    require_sentencepiece_form({**tiny_tokenizer("phi3"), **part})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        # The library ends the process over this one.
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}, "normalizer that does more"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(x|x)*y"}, "content": ""}}, "normalizer that does"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}}, "normalizer that does more"),
        ({"normalizer": {"type": "Prepend", "prepend": "▁" * 1000}}, "normalizer that does more"),
        ({"normalizer": {"type": "Sequence"}}, "normalizer that is a sequence without normalizers"),
        ({"normalizer": "NFC"}, "normalizer with a step that is no object: 'NFC'"),
        ({"pre_tokenizer": SPLIT}, "pre_tokenizer that does more"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [METASPACE, SPLIT]}}, "pre_tokenizer that does more"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "pre_tokenizer that does more"),
        ({"decoder": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}}, "decoder that does more"),
        ({"decoder": {"type": ["Fuse"]}}, "decoder that does more"),
        ({"post_processor": {"type": "ByteLevel"}}, "post_processor that does more"),
        ({"model": {"type": "BPE", "vocab": {}}}, "holds a BPE model without byte fallback"),
        ({"model": {"type": "Unigram", "byte_fallback": True}}, "holds a Unigram model without byte fallback"),
        ({"model": []}, "has no model"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_sentencepiece_form({**tiny_tokenizer("phi3"), **part})


def test_random_merges_are_refused() -> None:
    tokenizer = tiny_tokenizer("phi3")
    tokenizer["model"]["dropout"] = 0.1
    with pytest.raises(ValueError, match=r"has a model with dropout 0\.1"):
        require_sentencepiece_form(tokenizer)


@pytest.mark.parametrize("tokenizer", [None, [], "x", 3])
def test_what_is_no_object_has_no_model(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="has no model"):
        require_sentencepiece_form(tokenizer)


def test_a_key_that_stands_twice_is_refused() -> None:
    """Python takes the last value, another parser may take the first."""
    text = json.dumps(tiny_tokenizer("phi3"))
    twice = text[:-1] + ', "normalizer": null}'
    with pytest.raises(ValueError, match="holds a key twice"):
        read_sentencepiece_form(twice.encode())
    assert read_sentencepiece_form(text.encode()) == tiny_tokenizer("phi3")
