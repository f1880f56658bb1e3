"""TroL-tiny's tokenizer: one id a word, one a printed character, and the form that every released model's has."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from trol_benchmarks.world import words
from trol_benchmarks.world.questions import ask, vocabulary_texts
from trol_benchmarks.world.sampling import sample_scene
from trol_benchmarks.world.splits import Split
from trol_export.checkpoint import Checkpoint
from trol_export.checkpoint_config import read_model_config
from trol_export.tiny.tokenizer import build_tokenizer
from trol_export.tokenizer_conversion import check_tokenizer, convert_tokenizer
from trol_runtime.prompt import official_template
from trol_runtime.tokenizer import TextTokenizer
from trol_runtime.tokenizer_form import require_sentencepiece_form

TEMPLATE = official_template("internlm2")
TEXTS = [
    "What colour is the square?",
    "Answer with the option's letter from the given choices directly.",
    "A. red\nB. dark blue",
    "The word is CAT and the number is 17.",
]


class Reader:
    """A tokenizer as an engine uses it, with pieces by name."""

    def __init__(self, tokenizer: dict[str, Any]) -> None:
        exported = json.loads(json.dumps(tokenizer))
        vocab, added = exported["model"]["vocab"], exported["added_tokens"]
        vocab["<image>"] = len(vocab)  # as an export adds it
        added.append({**added[0], "id": vocab["<image>"], "content": "<image>"})
        self.text = TextTokenizer(json.dumps(exported).encode(), TEMPLATE)
        self.names = {token: piece for piece, token in vocab.items()}

    def pieces(self, text: str) -> list[str]:
        return [self.names[token] for token in self.text.encode_text(text)]


SMALL = Reader(build_tokenizer(TEXTS))
LIBRARY = Tokenizer.from_str(json.dumps(build_tokenizer(TEXTS)))
WORLD = vocabulary_texts()


@pytest.fixture(scope="module")
def of_the_world() -> Reader:
    return Reader(build_tokenizer(WORLD))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("What colour is the square?", ["What", "▁colour", "▁is", "▁the", "▁square", "?"]),
        ("A. red\nB. dark blue", ["A", ".", "▁red", "\n", "B", ".", "▁dark", "▁blue"]),
        ("the option's letter", ["the", "▁option", "'", "s", "▁letter"]),
    ],
)
def test_a_known_word_is_one_piece_with_the_space_before_it(text: str, pieces: list[str]) -> None:
    assert Reader(build_tokenizer([*TEXTS, text])).pieces(text) == pieces


@given(st.lists(st.from_regex(r"[A-Z]?[a-z]{1,8}", fullmatch=True), min_size=1))
def test_whatever_the_words_each_is_one_piece(some_words: list[str]) -> None:
    tokenizer = Reader(build_tokenizer([" ".join(some_words)]))
    first, *others = some_words
    assert tokenizer.pieces(" ".join(some_words)) == [first, *(f"▁{word}" for word in others)]


def words_and_characters(text: str) -> list[str]:
    """A text as the tokenizer should see it: words, with the space before them, and single characters."""
    return re.findall(r" ?(?<![A-Za-z])[A-Z]?[a-z]+|[^a-z]", text)


def test_every_text_of_the_world_comes_apart_into_words_and_characters(of_the_world: Reader) -> None:
    for text in WORLD:
        assert of_the_world.pieces(text) == [part.replace(" ", "▁") for part in words_and_characters(text)]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_so_does_whatever_is_asked_and_answered_there(of_the_world: Reader, split: Split) -> None:
    rng = np.random.default_rng(7)
    questions = [question for _ in range(40) for question in ask(rng, sample_scene(rng, split), 4)]
    for text in {text for question in questions for text in (question.text, question.answer)}:
        assert of_the_world.pieces(text) == [part.replace(" ", "▁") for part in words_and_characters(text)]


@pytest.mark.parametrize("around", ["{}", "The word is {}.", "is {} red", "A. {}\nB. NO"])
def test_printed_words_and_numbers_are_read_character_by_character(of_the_world: Reader, around: str) -> None:
    before, after = around.split("{}")
    for printed in (*words.TRAIN, *words.VALIDATION, *words.TEST, "7", "17", "999"):
        expected = [*of_the_world.pieces(before), *printed, *of_the_world.pieces(after)]
        assert of_the_world.pieces(before + printed + after) == expected


def test_the_vocabulary_of_the_world_stays_small(of_the_world: Reader) -> None:
    # Below 1000: each id is a row of two matrices, and 352 are bytes and characters.
    assert 400 < len(of_the_world.names) < 1000


@given(st.text())
def test_any_text_comes_back_but_for_the_sign_that_stands_for_a_space(text: str) -> None:
    text = text.replace("▁", " ")
    assert LIBRARY.decode(SMALL.text.encode_text(text)) == text
    assert SMALL.text.decode(SMALL.text.encode_text(text)) == text.strip()


def test_the_fixed_parts_of_a_prompt_take_fourteen_ids() -> None:
    """The system text, the same in every prompt, is one of them."""
    names = [SMALL.names[token] for token in SMALL.text.encode_prompt("What", [1], 2)[0]]
    begin, end = "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"
    system = TEMPLATE.segments("", ())[2].text
    assert names == [
        *("<s>", begin, system, end, "\n"),
        *(begin, "user", "\n", "<image>", "<image>", "\n", "What", end, "\n"),
        *(begin, "assistant", "\n"),
    ]  # fmt: skip
    assert system.startswith("system\nYou are AI model created by")


@pytest.mark.parametrize("mark", ["<s>", "</s>", "<unk>", "<image>", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"])
def test_a_mark_that_a_user_types_stays_text(mark: str) -> None:
    pieces = SMALL.pieces(f"What {mark}?")
    assert mark not in pieces
    assert "".join(pieces).replace("▁", " ") == f"What {mark}?"


def test_a_word_that_was_not_foreseen_comes_in_fragments() -> None:
    assert "".join(SMALL.pieces("unforeseen")) == "unforeseen"
    assert SMALL.pieces("ü") == ["<0xC3>", "<0xBC>"]


def test_ids_are_numbered_without_a_gap_and_begin_with_the_marks() -> None:
    vocab = build_tokenizer(TEXTS)["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(len(vocab)))
    marks = ["<unk>", "<s>", "</s>", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"]
    assert [vocab[mark] for mark in marks] == [0, 1, 2, 3, 4]


def test_the_same_words_give_the_same_tokenizer_in_any_order_and_any_process() -> None:
    program = (
        "import hashlib, json; from trol_export.tiny.tokenizer import build_tokenizer; "
        f"print(hashlib.sha256(json.dumps(build_tokenizer({TEXTS[::-1]!r})).encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(json.dumps(build_tokenizer(TEXTS)).encode()).hexdigest()


def test_an_export_takes_it_as_it_is_and_adds_the_picture_behind_it(trained_checkpoint: Path) -> None:
    tokenizer = json.loads((trained_checkpoint / "tokenizer.json").read_text())
    require_sentencepiece_form(tokenizer)
    checkpoint = Checkpoint.open(trained_checkpoint)
    config = read_model_config(checkpoint.config, checkpoint.generation, checkpoint.shapes)
    assert check_tokenizer(trained_checkpoint, config) == []
    engine = TextTokenizer(convert_tokenizer(trained_checkpoint, config), TEMPLATE)
    ids = engine.encode_prompt("What colour is the square?", [1], 3)
    np.testing.assert_array_equal(ids, Reader(tokenizer).text.encode_prompt("What colour is the square?", [1], 3))
    assert (ids == len(tokenizer["model"]["vocab"])).sum() == 3
