"""The ids in a checkpoint's tokenizer files, whichever of the files there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golden.tiny_tokenizer import write_tiny_tokenizer
from trol_export.token_ids import NO_TOKENIZER, read_token_ids
from trol_runtime.errors import CheckpointError


def test_no_files_name_nothing(tmp_path: Path) -> None:
    assert read_token_ids(tmp_path) == NO_TOKENIZER


def test_tokenizer_json_names_vocabulary_and_added_pieces(tmp_path: Path) -> None:
    write_tiny_tokenizer("phi3", tmp_path)
    ids = read_token_ids(tmp_path)
    assert ids.by_piece["<IMG_CONTEXT>"] == 990
    assert ids.eos == 2


def test_the_end_of_sequence_is_the_one_the_tokenizer_config_names(tmp_path: Path) -> None:
    write_tiny_tokenizer("phi3", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    assert read_token_ids(tmp_path).eos == 997


def test_added_pieces_come_from_every_file_that_lists_them(tmp_path: Path) -> None:
    write_tiny_tokenizer("phi3", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<quad>": 1001}))
    decoder = {"added_tokens_decoder": {"1002": {"content": "<box>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(decoder))
    ids = read_token_ids(tmp_path).by_piece
    assert (ids["<quad>"], ids["<box>"]) == (1001, 1002)


@pytest.mark.parametrize(("arch", "piece", "token"), [("internlm2", "[UNUSED_TOKEN_145]", 92542), ("phi3", "</s>", 2)])
def test_sentencepiece_models_name_their_pieces(
    tmp_path: Path, shared_data: Path, arch: str, piece: str, token: int
) -> None:
    model = (shared_data / "tokenizers" / arch / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model)
    ids = read_token_ids(tmp_path)
    assert ids.by_piece[piece] == token
    assert (ids.by_piece["<s>"], ids.eos) == (1, 2)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_damaged_json_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=f"{name}.*not JSON"):
        read_token_ids(tmp_path)


def test_a_damaged_sentencepiece_model_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model \(100 bytes\) is not a SentencePiece model: download"):
        read_token_ids(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
def test_a_directory_where_a_file_belongs_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: Is a directory$"):
        read_token_ids(tmp_path)


def test_what_is_no_id_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": True, "<b>": "7", "<c>": 7}))
    decoder = {"9" * 5000: {"content": "<d>"}, "-1": {"content": "<e>"}, "8": {"content": "<f>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert read_token_ids(tmp_path).by_piece == {"<c>": 7, "<f>": 8}
