"""Tokenizer files of a checkpoint to `tokenizer.json`: the same ids as SentencePiece and the official classes give."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer

from golden.tiny_tokenizer import tiny_tokenizer, write_tiny_tokenizer
from trol_export.tokenizer_conversion import check_tokenizer, convert_tokenizer, read_eos_piece, read_sentencepiece
from trol_runtime.errors import CheckpointError
from trol_runtime.model_config import ClipVision, Decoder, ModelConfig, Rope
from trol_runtime.prompt import Arch, official_template
from trol_runtime.tokenizer import TextTokenizer

PHI3_MARKS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<img>", "</img>", "<IMG_CONTEXT>"]


def model_config(arch: Arch, vocab_size: int, image_token_id: int, embedding_rows: int | None = None) -> ModelConfig:
    """A config of which only the token ids matter here."""
    decoder = Decoder(
        hidden_size=8,
        intermediate_size=8,
        layers=1,
        heads=1,
        kv_heads=1,
        vocab_size=vocab_size,
        embedding_rows=embedding_rows or vocab_size + (arch == "internlm2"),
        rms_norm_eps=1e-5,
        rope=Rope(theta=1e4),
        max_positions=64,
    )
    vision = ClipVision(
        hidden_size=8, intermediate_size=8, layers=1, heads=1, patch_size=14, grid=2, layer_norm_eps=1e-5
    )
    return ModelConfig(
        arch=arch,
        vision=vision,
        decoder=decoder,
        image_token_id=image_token_id,
        eos_token_ids=(2,),
        bos_token_id=1,
        pad_token_id=2,
    )


TINY = {"internlm2": model_config("internlm2", 1000, 1000), "phi3": model_config("phi3", 1000, 990)}
REAL = {"internlm2": model_config("internlm2", 92544, 92544), "phi3": model_config("phi3", 32020, 32013)}


def converted(directory: Path, config: ModelConfig, marks_in_text: bool) -> Tokenizer:
    return library(convert_tokenizer(directory, config), marks_in_text)


def library(tokenizer_json: bytes, marks_in_text: bool) -> Tokenizer:
    """The library's tokenizer; the runtime uses it with `marks_in_text` off."""
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.encode_special_tokens = not marks_in_text
    return tokenizer


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


# --- SentencePiece models trained here ----------------------------------------------------------------------------

CORPUS = [
    "the cat sat on the mat and the dog ran after the cat",
    "what is in the picture? answer the question using a single word or phrase.",
    "there are three answers; these are the ones that matter    most",
    "aaaa aaa aa a ==== === == = ---- 1000 2000 3000",
    "def f(x):    return x ** 2",
    "你好 世界 你好 的的的 世界",
]
USER_DEFINED = ["[UNUSED_TOKEN_14]", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]", "——", "\uff26"]


def train(directory: Path, **settings_of_the_model: Any) -> None:
    SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS * 4),
        model_prefix=str(directory / "tokenizer"),
        **{
            "model_type": "bpe",
            "vocab_size": 420,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_by_whitespace": False,
            "minloglevel": 2,
            **settings_of_the_model,
        },
    )


@pytest.fixture(scope="module")
def trained_internlm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with InternLM2's settings: no leading space, chat marks as user-defined pieces."""
    directory = tmp_path_factory.mktemp("internlm2")
    train(directory, add_dummy_prefix=False, user_defined_symbols=USER_DEFINED)
    return directory


@pytest.fixture(scope="module")
def trained_phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with Phi-3's settings: a leading space, marks beside the model."""
    directory = tmp_path_factory.mktemp("phi3")
    train(directory, add_dummy_prefix=True)
    (directory / "added_tokens.json").write_text(json.dumps({mark: 420 + i for i, mark in enumerate(PHI3_MARKS)}))
    return directory


TRAINED = {"internlm2": model_config("internlm2", 420, 420), "phi3": model_config("phi3", 427, 426)}

# What BPE conversions get wrong: runs, overlaps, borders of pieces, characters without a piece.
TRICKY = [
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n",
    "\t",
    "aaa",
    "a",
    "==",
    "=",
    "the",
    " the",
    "在",
    "你好",
    "的的",
    "—",
    "——",
    "…",
    "……",
]
TRICKY += [
    "\uff26",
    "\uff55",
    "\0",
    "\x01",
    "é",
    "e\u0301",
    "😀",
    "👨‍👩‍👧",
    "▁",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "[UNUSED_",
    "\u3000",
    "\r\n",
]
TEXTS = st.text(max_size=30) | st.lists(st.sampled_from(TRICKY) | st.text(max_size=3), max_size=20).map("".join)


@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_a_sentencepiece_model_and_its_conversion_give_the_same_ids(arch: Arch, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(f"trained_{arch}")
    assert_same_ids_as_sentencepiece(directory, convert_tokenizer(directory, TRAINED[arch]), examples=400)


def assert_same_ids_as_sentencepiece(directory: Path, tokenizer_json: bytes, examples: int) -> None:
    tokenizer = library(tokenizer_json, marks_in_text=False)
    model = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(text=TEXTS.filter(lambda text: not re.search(r"\[UNUSED_TOKEN_\d+\]", text)))
    def same(text: str) -> None:
        assert ids(tokenizer, text) == model.encode(text)

    same()


@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_text_survives_the_way_to_ids_and_back(arch: Arch, request: pytest.FixtureRequest) -> None:
    data = convert_tokenizer(request.getfixturevalue(f"trained_{arch}"), TRAINED[arch])
    tokenizer = TextTokenizer(data, official_template(arch))
    text = "the picture: 你好 😀\n  2 == 2"
    assert tokenizer.decode(ids(Tokenizer.from_buffer(data), text)) == text


def test_user_defined_pieces_are_found_inside_text_but_placeholders_only_as_marks(trained_internlm2: Path) -> None:
    model = SentencePieceProcessor(model_file=str(trained_internlm2 / "tokenizer.model"))
    as_text = converted(trained_internlm2, TRAINED["internlm2"], marks_in_text=False)
    with_marks = converted(trained_internlm2, TRAINED["internlm2"], marks_in_text=True)
    for text in ["a\uff26a", "a——a", "a———a"]:
        assert ids(as_text, text) == ids(with_marks, text) == model.encode(text)
    for mark in USER_DEFINED[:3]:
        assert ids(with_marks, f"a{mark}a") == model.encode(f"a{mark}a")
        assert model.piece_to_id(mark) not in ids(as_text, f"a{mark}a")
        assert as_text.decode(ids(as_text, f"a{mark}a")) == f"a{mark}a"


def test_image_is_added_after_the_vocabulary_of_internlm2(trained_internlm2: Path) -> None:
    tokenizer = converted(trained_internlm2, TRAINED["internlm2"], marks_in_text=True)
    assert tokenizer.token_to_id("<image>") == 420
    assert ids(tokenizer, "<image><image>") == [420, 420]


def test_an_image_piece_that_the_checkpoint_names_is_kept(trained_internlm2: Path, tmp_path: Path) -> None:
    shutil.copy(trained_internlm2 / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<other>": 420, "<image>": 421}')
    config = model_config("internlm2", 420, image_token_id=421, embedding_rows=422)
    tokenizer = converted(tmp_path, config, marks_in_text=True)
    assert ids(tokenizer, "<other><image>") == [420, 421]


def test_added_tokens_json_alone_gives_phi3_marks_their_own_settings(trained_phi3: Path) -> None:
    tokenizer = converted(trained_phi3, TRAINED["phi3"], marks_in_text=True)
    flags = tokenizer.get_added_tokens_decoder()
    assert {token.content for token in flags.values() if token.rstrip} == {
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
    }


def test_flags_come_from_tokenizer_config_first_then_from_special_tokens_map(
    trained_phi3: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_phi3, tmp_path, dirs_exist_ok=True)
    in_map = {"additional_special_tokens": [{"content": mark, "rstrip": True} for mark in ("<img>", "</img>")]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(in_map))
    in_config = {"424": {"content": "<img>", "lstrip": True}, "427": {"content": "<box>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": in_config}))
    flags = {
        token.content: (token.lstrip, token.rstrip, token.special)
        for token in converted(tmp_path, replace_rows(TRAINED["phi3"], 428), True).get_added_tokens_decoder().values()
    }
    assert flags["<img>"] == (True, False, True)
    assert flags["</img>"] == (False, True, True)
    assert flags["<box>"] == (False, False, False)
    assert flags["<|end|>"] == (False, True, True)


def replace_rows(config: ModelConfig, rows: int) -> ModelConfig:
    return replace(config, decoder=replace(config.decoder, embedding_rows=rows))


def test_without_legacy_behaviour_texts_inside_a_prompt_get_no_leading_space(
    trained_phi3: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_phi3, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false}')
    with_space = converted(trained_phi3, TRAINED["phi3"], marks_in_text=False)
    without = converted(tmp_path, TRAINED["phi3"], marks_in_text=False)
    assert "".join(with_space.encode("the cat").tokens) == "▁the▁cat"
    assert "".join(without.encode("the cat").tokens) == "the▁cat"


# --- tokenizer.json -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_a_tokenizer_json_keeps_its_ids(arch: Arch, tmp_path: Path) -> None:
    write_tiny_tokenizer(arch, tmp_path)
    original = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = converted(tmp_path, TINY[arch], marks_in_text=True)
    text = "<s>What is <img> in the picture?</s>[UNUSED_TOKEN_145]<|end|>  😀"
    assert ids(tokenizer, text) == ids(original, text)
    assert sorted(tokenizer.get_vocab().values()) == list(range(1000 + (arch == "internlm2")))


def test_tokenizer_json_wins_over_tokenizer_model(trained_phi3: Path, tmp_path: Path) -> None:
    shutil.copy(trained_phi3 / "tokenizer.model", tmp_path)
    write_tiny_tokenizer("phi3", tmp_path)
    assert converted(tmp_path, TINY["phi3"], marks_in_text=True).token_to_id("<|end|>") == 996


def test_marks_become_special_and_no_merge_of_characters_makes_one(tmp_path: Path) -> None:
    data = tiny_tokenizer("internlm2")
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 3]
    vocab, mark = data["model"]["vocab"], "[UNUSED_TOKEN_145]"
    vocab["[UNUSED_TOKEN_145"] = vocab.pop("rr")
    data["model"]["merges"] = [merge for merge in data["model"]["merges"] if "".join(merge) != "rr"]
    data["model"]["merges"].append(["[UNUSED_TOKEN_145", "]"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = converted(tmp_path, TINY["internlm2"], marks_in_text=True)
    assert ids(tokenizer, mark) == [998]
    assert tokenizer.get_added_tokens_decoder()[998].special
    assert not any("".join(merge) == mark for merge in json.loads(tokenizer.to_str())["model"]["merges"])


def test_a_leading_space_for_the_first_text_only_is_none_inside_a_prompt(tmp_path: Path) -> None:
    data = tiny_tokenizer("phi3")
    data["normalizer"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    official = Tokenizer.from_str(json.dumps(data))
    tokenizer = converted(tmp_path, TINY["phi3"], marks_in_text=False)
    assert [official.token_to_id("<img>"), *ids(tokenizer, "a b")] == ids(official, "<img>a b")


def test_merges_in_the_older_form_are_read(tmp_path: Path) -> None:
    data = tiny_tokenizer("phi3")
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert converted(tmp_path, TINY["phi3"], marks_in_text=False).encode("eat").tokens == ["▁e", "at"]


# --- what is refused ----------------------------------------------------------------------------------------------


def refusal(directory: Path, config: ModelConfig) -> str:
    with pytest.raises(CheckpointError) as error:
        convert_tokenizer(directory, config)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(str(directory), "DIR")


def test_a_checkpoint_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, TINY["phi3"])
    assert message == (
        "DIR has neither tokenizer.json nor tokenizer.model: "
        "add the checkpoint's tokenizer files, or export with --no-tokenizer"
    )
    assert check_tokenizer(tmp_path, TINY["phi3"]) == [message.replace("DIR", str(tmp_path))]


def test_all_deviations_from_the_config_are_named_at_once(tmp_path: Path) -> None:
    write_tiny_tokenizer("phi3", tmp_path)
    config = model_config("internlm2", vocab_size=900, image_token_id=950)
    assert refusal(tmp_path, config) == (
        "DIR/tokenizer.json: the piece '[UNUSED_TOKEN_145]' of the internlm2 prompt is missing; "
        "the piece '[UNUSED_TOKEN_146]' of the internlm2 prompt is missing; "
        "'<image>' has id 900, but config.json has image_token_index 950; "
        "99 pieces from 'bt' (id 901) have no row among the 901 of the embedding table; "
        "['<image>', 'be'] share id 900; take the tokenizer files of the TroL checkpoint"
    )
    assert check_tokenizer(tmp_path, config)[2] == (
        "tokenizer.json: '<image>' has id 900, but config.json has image_token_index 950"
    )
    assert len(check_tokenizer(tmp_path, config)) == 5


@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_a_good_tokenizer_has_no_deviations(arch: Arch, tmp_path: Path) -> None:
    write_tiny_tokenizer(arch, tmp_path)
    assert check_tokenizer(tmp_path, TINY[arch]) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"DIR/tokenizer\.json is not JSON: .*; fetch it again"),
        (b"\xff", r"DIR/tokenizer\.json is not JSON: .*; fetch it again"),
        (b"[" * 100_000, r"DIR/tokenizer\.json is not JSON: .*; fetch it again"),
        (b"[]", r"DIR/tokenizer\.json holds a JSON list, expected an object; fetch it again"),
        (b"{}", r"DIR/tokenizer\.json has no model: expected SentencePiece BPE .*"),
        (
            b'{"model": {"type": "BPE", "byte_fallback": true, "vocab": 3}}',
            r"DIR/tokenizer\.json is not a tokenizer that the tokenizers library reads \(.*\): download it again",
        ),
        (
            b'{"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", '
            b'"continuing_subword_prefix": "#", "max_input_chars_per_word": 9}}',
            r"DIR/tokenizer\.json holds a WordPiece model without byte fallback: expected SentencePiece BPE .*",
        ),
    ],
)
def test_a_tokenizer_json_that_is_none_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert re.fullmatch(message, refusal(tmp_path, TINY["phi3"]))


def test_a_tokenizer_json_with_a_step_of_another_kind_is_refused_before_the_library_reads_it(tmp_path: Path) -> None:
    """The library ends the process over this table."""
    table = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tiny_tokenizer("phi3"), "normalizer": table}))
    message = refusal(tmp_path, TINY["phi3"])
    assert message.startswith("DIR/tokenizer.json has a normalizer that does more than to write spaces as ▁: {'type': ")
    assert message.endswith("take the tokenizer files of the TroL checkpoint")


def test_prompts_are_never_shortened_or_filled_whatever_the_checkpoint_says(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    strategy = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None}
    padding = {**strategy, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    settings = {"truncation": truncation, "padding": padding}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tiny_tokenizer("phi3"), **settings}))
    converted = json.loads(convert_tokenizer(tmp_path, TINY["phi3"]))
    assert (converted["truncation"], converted["padding"]) == (None, None)
    prompts = [
        TextTokenizer(json.dumps({**converted, **kept}).encode(), official_template("phi3")).encode_prompt("Hi", [], 1)
        for kept in ({}, settings)
    ]
    assert prompts[0].tolist() == prompts[1].tolist()
    assert prompts[0].size > 9


def test_a_sentencepiece_model_with_an_endless_piece_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    model = read_sentencepiece(tmp_path / "tokenizer.model")
    model.pieces[-1].piece = "ab" * 501
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    assert refusal(tmp_path, TRAINED["phi3"]) == (
        "DIR/tokenizer.model: expected pieces of at most 1000 characters; "
        "take the tokenizer files of the TroL checkpoint"
    )


@pytest.mark.parametrize("content", [b"", b"no model", b"\0" * 64])
def test_a_tokenizer_model_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert refusal(tmp_path, TINY["phi3"]) == (
        f"DIR/tokenizer.model ({len(content)} bytes) is not a SentencePiece model: download it again"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_directory_in_place_of_a_tokenizer_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert refusal(tmp_path, TINY["phi3"]) == f"DIR/{name} cannot be read: Is a directory"


def test_a_truncated_tokenizer_model_is_refused(trained_phi3: Path, tmp_path: Path) -> None:
    data = (trained_phi3 / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data[: len(data) // 2])
    assert "is not a SentencePiece model: download it again" in refusal(tmp_path, TINY["phi3"])


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"model_type": "unigram", "vocab_size": 330}, "model_type BPE"),
        ({"byte_fallback": False, "vocab_size": 120}, "byte_fallback on"),
        ({"normalization_rule_name": "nfkc"}, "no normalization of characters"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces off"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix off"),
    ],
)
def test_a_sentencepiece_model_that_works_otherwise_is_refused(
    setting: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    train(tmp_path, **setting)
    assert refusal(tmp_path, TRAINED["phi3"]) == (
        f"DIR/tokenizer.model: expected {expected}; take the tokenizer files of the TroL checkpoint"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", '{"<x>": "one"}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
    ],
)
def test_malformed_added_pieces_are_refused(name: str, content: str, trained_phi3: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_phi3, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    assert "has an unexpected form" in refusal(tmp_path, TRAINED["phi3"])


@pytest.mark.parametrize(
    ("files", "piece"),
    [
        ({}, "</s>"),
        ({"tokenizer_config.json": {"eos_token": "<|endoftext|>"}}, "<|endoftext|>"),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|end|>"}}}, "<|end|>"),
        ({"special_tokens_map.json": {"eos_token": "<|end|>"}}, "<|end|>"),
        ({"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {"eos_token": "<e>"}}, "<e>"),
    ],
)
def test_the_end_of_sequence_is_what_the_tokenizer_files_say(files: dict[str, Any], piece: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert read_eos_piece(tmp_path) == piece


# --- the real tokenizers ------------------------------------------------------------------------------------------


def copy_of(source: Path, destination: Path, names: list[str]) -> Path:
    for name in names:
        shutil.copy(source / name, destination)
    return destination


class Real(NamedTuple):
    """A real tokenizer, its files and what became of them."""

    arch: Arch
    directory: Path
    tokenizer_json: bytes


@pytest.fixture(
    params=[
        pytest.param(("internlm2", ["tokenizer.model"]), id="internlm2 tokenizer.model"),
        pytest.param(("phi3", ["tokenizer.model", "added_tokens.json"]), id="phi3 tokenizer.model"),
        pytest.param(("phi3", ["tokenizer.json"]), id="phi3 tokenizer.json"),
    ],
    scope="module",
)
def real(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Real:
    arch, names = request.param
    directory = copy_of(shared_data / "tokenizers" / arch, tmp_path_factory.mktemp(arch), names)
    return Real(arch, directory, convert_tokenizer(directory, REAL[arch]))


def vectors(shared_data: Path, arch: Arch) -> Iterator[tuple[str, list[int]]]:
    for line in (shared_data / "tokenizers" / arch / "vectors.jsonl").read_text(encoding="utf-8").splitlines():
        vector = json.loads(line)
        yield vector["text"], vector["ids"]


def test_every_vector_has_its_ids_and_text(real: Real, shared_data: Path) -> None:
    as_text = library(real.tokenizer_json, marks_in_text=False)
    with_marks = library(real.tokenizer_json, marks_in_text=True)
    runtime = TextTokenizer(real.tokenizer_json, official_template(real.arch))
    for text, expected in vectors(shared_data, real.arch):
        holds_marks = any(piece in text for piece in ("UNUSED", "<|", "<img>"))
        # SentencePiece itself, which made internlm2's vectors, does not find <s> and </s> inside text.
        assert ids(with_marks if holds_marks else as_text, text) == expected, text
        if not holds_marks:
            assert runtime.decode(expected) == text.strip(), text


def test_llama_cpp_agrees_on_its_own_test_texts(real: Real, shared_data: Path) -> None:
    if real.arch == "internlm2":
        pytest.skip("llama.cpp has no such vectors for internlm2")
    vocab = shared_data / "tokenizers" / "phi3" / "ggml-vocab-phi-3.gguf"
    with open(f"{vocab}.inp", encoding="utf-8", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    expected = [[int(token) for token in line.split()] for line in Path(f"{vocab}.out").read_text().split("\n")]
    assert len(texts) == 47
    for marks_in_text in (False, True):
        tokenizer = library(real.tokenizer_json, marks_in_text)
        assert [ids(tokenizer, text) for text in texts] == expected


def test_the_real_models_and_their_conversions_give_the_same_ids(real: Real) -> None:
    if not (real.directory / "tokenizer.model").exists():
        pytest.skip("tokenizer.json has no SentencePiece model to compare with")
    assert_same_ids_as_sentencepiece(real.directory, real.tokenizer_json, examples=300)


def test_phi3_converts_to_the_merges_and_pieces_of_its_tokenizer_json(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "tokenizers" / "phi3"
    copy_of(source, tmp_path, ["tokenizer.model", "added_tokens.json"])
    from_model = json.loads(convert_tokenizer(tmp_path, REAL["phi3"]))
    reference = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    assert from_model["model"]["merges"] == reference["model"]["merges"]
    assert from_model["added_tokens"] == reference["added_tokens"]
    assert from_model["normalizer"] == reference["normalizer"]
    assert from_model["decoder"] == reference["decoder"]


def test_a_real_tokenizer_in_a_tiny_checkpoint_is_refused(shared_data: Path, tmp_path: Path) -> None:
    copy_of(shared_data / "tokenizers" / "internlm2", tmp_path, ["tokenizer.model"])
    message = refusal(tmp_path, TINY["internlm2"])
    assert "91543 pieces from 'ick' (id 1001) have no row among the 1001 of the embedding table" in message
