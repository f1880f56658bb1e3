"""Prompts to ids and ids to text, on our own tiny tokenizers and, where they are at hand, on the real ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from golden.tiny_tokenizer import tiny_tokenizer
from trol_runtime.errors import EngineFileError, UsageError
from trol_runtime.prompt import Arch, official_template
from trol_runtime.tokenizer import TextTokenizer, _until

ARCHS: list[Arch] = ["internlm2", "phi3"]
EMOJI = "🎉"  # four byte pieces in every tokenizer here


@cache
def tiny_json(arch: Arch) -> bytes:
    """The tiny tokenizer as an engine holds it; for internlm2 the export adds <image> at the first free id."""
    data = tiny_tokenizer(arch)
    if arch == "internlm2":
        data["model"]["vocab"]["<image>"] = 1000
        data["added_tokens"].append({**data["added_tokens"][-1], "id": 1000, "content": "<image>"})
    return json.dumps(data).encode()


@cache
def tiny(arch: Arch) -> TextTokenizer:
    return TextTokenizer(tiny_json(arch), official_template(arch))


@cache
def library(arch: Arch) -> Tokenizer:
    """The tokenizers library itself, which finds marks inside text as the official code does."""
    return Tokenizer.from_buffer(tiny_json(arch))


@cache
def vocab(arch: Arch) -> dict[str, int]:
    return library(arch).get_vocab(with_added_tokens=True)


def ids_of(arch: Arch, *parts: str | bytes | int) -> list[int]:
    """Ids of an answer: text character by character, single bytes, or ids as they are."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        elif isinstance(part, bytes):
            ids += [vocab(arch)[f"<0x{byte:02X}>"] for byte in part]
        else:
            for character in part:
                piece = character.replace(" ", "▁")
                ids += [vocab(arch)[piece]] if piece in vocab(arch) else ids_of(arch, character.encode())
    return ids


# --- prompts ------------------------------------------------------------------------------------------------------


def official_text(
    arch: Arch, question: str, crops: list[int], tokens_per_crop: int, *, follows_answer: bool = False
) -> str:
    """The prompt as the official code writes it, one string with the image pieces expanded."""
    image_tokens = [n * tokens_per_crop for n in crops]
    segments = official_template(arch).segments(question, image_tokens, follows_answer=follows_answer)
    return "".join(segment.text * segment.repeat for segment in segments)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("question", "crops"),
    [
        *(
            (question, crops)
            for question in ["Why?", " two  spaces ", "\n\nlines\n", f"{EMOJI} ok", ""]
            for crops in ([], [7])
        ),
        ("Look: <image> there", [1]),
        ("<image>\n<image>", [1, 3]),
        ("Compare.", [2, 1, 1]),
    ],
)
def test_a_prompt_has_the_ids_of_the_official_text(arch: Arch, question: str, crops: list[int]) -> None:
    prompt = tiny(arch).encode_prompt(question, crops, tokens_per_crop=4)
    assert prompt.tolist() == [library(arch).encode(official_text(arch, question, crops, tokens_per_crop=4)).ids]
    assert prompt.dtype == np.int64
    assert prompt.shape[0] == 1


@pytest.mark.parametrize(("arch", "image_id"), [("internlm2", 1000), ("phi3", 990)])
def test_each_picture_has_its_crops_times_tokens_per_crop_image_tokens(arch: Arch, image_id: int) -> None:
    prompt = tiny(arch).encode_prompt("<image> or <image>?", [3, 1], tokens_per_crop=5)[0]
    places = np.flatnonzero(prompt == image_id)
    assert len(places) == 20
    assert (np.diff(places) == 1).sum() == 18  # two stretches, of 15 and 5


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("typed", ["</s>", "<s>", "[UNUSED_TOKEN_145]", "<|end|>", "<|assistant|>", "<image>", "<img>"])
def test_a_special_piece_typed_by_a_user_is_text(arch: Arch, typed: str) -> None:
    prompt = tiny(arch).encode_prompt(f"Say {typed} now", [], tokens_per_crop=4)[0].tolist()
    plain = tiny(arch).encode_prompt("Say it now", [], tokens_per_crop=4)[0].tolist()
    special = set(library(arch).get_added_tokens_decoder())
    assert [token for token in prompt if token in special] == [token for token in plain if token in special]
    assert f"Say {typed} now" in library(arch).decode(prompt, skip_special_tokens=False)


def test_white_space_after_a_phi3_mark_is_swallowed() -> None:
    spaced = tiny("phi3").encode_prompt("\u3000\n\t Why?", [], tokens_per_crop=4)
    assert spaced.tolist() == tiny("phi3").encode_prompt("Why?", [], tokens_per_crop=4).tolist()


def test_white_space_is_swallowed_exactly_as_the_tokenizers_library_does() -> None:
    # U+001C is white space for Python but not for Unicode.
    for character in map(
        chr, [*range(1, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F, 0xFEFF]
    ):
        text = official_text("phi3", f"{character}Why?", [], tokens_per_crop=4)
        prompt = tiny("phi3").encode_prompt(f"{character}Why?", [], tokens_per_crop=4)
        assert prompt.tolist() == [library("phi3").encode(text).ids], repr(character)


def test_internlm2_keeps_white_space_after_a_mark() -> None:
    spaced = tiny("internlm2").encode_prompt(" 1?", [], tokens_per_crop=4)
    assert spaced.shape[1] == tiny("internlm2").encode_prompt("1?", [], tokens_per_crop=4).shape[1] + 1


def test_a_mark_that_strips_left_takes_the_space_before_it() -> None:
    data = json.loads(tiny_json("internlm2"))
    for token in data["added_tokens"]:
        token["lstrip"] = token["content"] == "[UNUSED_TOKEN_145]"
    tokenizer = TextTokenizer(json.dumps(data).encode(), official_template("internlm2"))
    assert tokenizer.encode_prompt("Why? \n", [], 4).tolist() == tokenizer.encode_prompt("Why?", [], 4).tolist()


@pytest.mark.parametrize("arch", ARCHS)
def test_a_conversation_is_its_turns_and_answers_one_after_the_other(arch: Arch) -> None:
    first = tiny(arch).encode_prompt("Who?", [2], tokens_per_crop=3)[0].tolist()
    answer = library(arch).encode("a cat").ids
    further = tiny(arch).encode_prompt("And <image>?", [1], tokens_per_crop=3, follows_answer=True)[0].tolist()
    text = official_text(arch, "Who?", [2], tokens_per_crop=3) + "a cat"
    text += official_text(arch, "And <image>?", [1], tokens_per_crop=3, follows_answer=True)
    assert first + answer + further == library(arch).encode(text).ids
    assert further[0] == tiny(arch).turn_end_id == vocab(arch)[official_template(arch).turn_end]


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        tiny("phi3").encode_prompt("ab\udcff", [], tokens_per_crop=4)
    assert str(error.value) == r"character 3 of the prompt is '\udcff', no Unicode text: pass it as UTF-8"


def test_a_tokenizer_that_cannot_be_read_is_a_damaged_engine() -> None:
    with pytest.raises(EngineFileError, match=r"cannot read the engine's tokenizer\.json .*export the engine again"):
        TextTokenizer(b'{"model": {"type": "BPE", "byte_fallback": true, "vocab": 3}}', official_template("phi3"))


def test_a_tokenizer_that_is_no_sentencepiece_is_a_damaged_engine() -> None:
    with pytest.raises(EngineFileError) as error:
        TextTokenizer(b'{"model": 3}', official_template("phi3"))
    assert str(error.value) == (
        "the engine's tokenizer.json is no SentencePiece BPE (has no model): export the engine again"
    )


def test_a_tokenizer_without_a_mark_of_the_prompt_is_refused_by_its_name() -> None:
    with pytest.raises(EngineFileError) as error:
        TextTokenizer(tiny_json("phi3"), official_template("internlm2"))
    assert str(error.value) == (
        "the engine's tokenizer.json lacks '[UNUSED_TOKEN_145]', a piece of its prompt: export the engine again"
    )


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_an_answer_is_cut_at_the_turn_end_and_stripped(arch: Arch) -> None:
    turn_end = vocab(arch)[official_template(arch).turn_end]
    ids = ids_of(arch, "  A cat.\n", turn_end, "\n", 2)
    assert tiny(arch).decode(ids) == "A cat."


@pytest.mark.parametrize("arch", ARCHS)
def test_a_turn_end_spelled_letter_by_letter_cuts_too(arch: Arch) -> None:
    turn_end = official_template(arch).turn_end
    assert tiny(arch).decode(ids_of(arch, f"yes {turn_end[:-1]} no {turn_end} never")) == f"yes {turn_end[:-1]} no"


def test_a_turn_end_that_repeats_its_own_beginning_is_found() -> None:
    data = json.loads(tiny_json("phi3"))
    data["model"]["vocab"]["aab"] = 1000
    tokenizer = TextTokenizer(json.dumps(data).encode(), replace(official_template("phi3"), turn_end="aab"))
    assert tokenizer.decode(ids_of("phi3", "no aaab yes")) == "no a"


def test_nothing_is_taken_after_the_turn_end() -> None:
    ids = iter(ids_of("phi3", "ok", 996, "more"))
    assert "".join(tiny("phi3").stream(ids)) == "ok"
    assert list(ids) == ids_of("phi3", "more")


@pytest.mark.parametrize("arch", ARCHS)
def test_an_emoji_of_four_tokens_arrives_whole_and_a_possible_turn_end_waits(arch: Arch) -> None:
    parts = list(tiny(arch).stream(ids_of(arch, "a ", EMOJI.encode(), " ", official_template(arch).turn_end[:2], "b")))
    assert parts == ["a", f" {EMOJI}", f" {official_template(arch).turn_end[:2]}b"]


@pytest.mark.parametrize(
    ("arch", "answer"),
    [
        pytest.param(
            "internlm2", f"{EMOJI}\n\ufffd\ufffdx\ufffd", id="internlm2 marks each stray byte, as SentencePiece does"
        ),
        pytest.param("phi3", "\ufffd" * 7 + "x\ufffd", id="phi3 marks the whole run of bytes, as tokenizers does"),
    ],
)
def test_bytes_that_are_no_utf8_become_the_official_replacement(arch: Arch, answer: str) -> None:
    assert tiny(arch).decode(ids_of(arch, EMOJI.encode() + b"\n\xf0\x9f", "x", b"\xff")) == answer


@pytest.mark.parametrize("arch", ARCHS)
def test_an_id_without_a_piece_is_passed_over(arch: Arch) -> None:
    assert tiny(arch).decode(ids_of(arch, "a", 123_456, "b")) == "ab"


@pytest.mark.parametrize("arch", ARCHS)
def test_an_empty_answer_streams_nothing(arch: Arch) -> None:
    assert list(tiny(arch).stream([])) == []
    assert list(tiny(arch).stream(ids_of(arch, " \n "))) == []


# --- stop texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "stop", "text"),
    [
        pytest.param("one two three", ("two",), "one", id="the text ends in front of it"),
        pytest.param("one two three", ("four",), "one two three", id="none comes"),
        pytest.param("one two three", ("three", "two"), "one", id="the first to come, whatever their order"),
        pytest.param("xabcdy", ("abcd", "bc"), "xa", id="the first to be complete, though another began before"),
        pytest.param("xabcy", ("bc", "abc"), "x", id="of those complete at one character the longest"),
        pytest.param("no aaab yes", ("aab",), "no a", id="one that repeats its own beginning"),
        pytest.param("a\n\nb", ("\n\n",), "a", id="white space"),
        pytest.param("stop", ("stop",), "", id="nothing is left"),
        pytest.param(f"ok {EMOJI} more", (EMOJI,), "ok", id="one of several bytes"),
    ],
)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_stop_text_ends_the_answer(arch: Arch, answer: str, stop: tuple[str, ...], text: str) -> None:
    ids = ids_of(arch, answer)
    assert tiny(arch).decode(ids, stop) == text
    assert "".join(tiny(arch).stream(iter(ids), stop)) == text


@pytest.mark.parametrize("arch", ARCHS)
def test_a_stop_text_and_the_turn_end_mark_are_looked_for_together(arch: Arch) -> None:
    turn_end = official_template(arch).turn_end
    assert tiny(arch).decode(ids_of(arch, f"a{turn_end}b.c"), (".",)) == "a"
    assert tiny(arch).decode(ids_of(arch, f"a.b{turn_end}c"), (".",)) == "a"
    assert tiny(arch).decode(ids_of(arch, f"a {turn_end[:2]}b"), (turn_end[:2],)) == "a"
    assert tiny(arch).decode(ids_of(arch, f"a .{turn_end}b"), (f".{turn_end}",)) == "a"


def test_nothing_is_taken_after_a_stop_text() -> None:
    ids = iter(ids_of("phi3", "one two three"))
    assert "".join(tiny("phi3").stream(ids, ("tw",))) == "one"
    assert list(ids) == ids_of("phi3", "o three")


def test_only_what_may_begin_a_stop_text_waits() -> None:
    parts = list(tiny("phi3").stream(ids_of("phi3", "xaay"), ("aab", "aac")))
    assert parts == ["x", "aay"]


def cut(text: str, stops: Sequence[str]) -> str:
    """The rule, character by character: what is complete first ends the text, the longest of several."""
    for length in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:length].endswith(stop)]
        if complete:
            return text[: length - max(map(len, complete))]
    return text


FEW_LETTERS = st.text("ab<| ", max_size=12)
STOPS = st.lists(st.text("ab<| ", min_size=1, max_size=4), max_size=4).map(tuple)


@pytest.mark.parametrize("arch", ARCHS)
@given(text=FEW_LETTERS, stop=STOPS)
def test_an_answer_ends_by_the_rule(arch: Arch, text: str, stop: tuple[str, ...]) -> None:
    ids = ids_of(arch, text)
    assert tiny(arch).decode(ids, stop) == cut(text, (*stop, official_template(arch).turn_end)).strip()


@given(parts=st.lists(FEW_LETTERS, max_size=6), stop=STOPS.filter(bool))
def test_the_rule_holds_however_the_text_is_divided(parts: list[str], stop: tuple[str, ...]) -> None:
    whole = "".join(parts)
    assert "".join(_until(stop, parts)) == "".join(_until(stop, [whole])) == cut(whole, stop)


@given(parts=st.lists(FEW_LETTERS, max_size=6), stop=STOPS.filter(bool))
def test_no_more_is_held_back_than_may_begin_a_stop_text(parts: list[str], stop: tuple[str, ...]) -> None:
    whole = "".join(parts)
    if cut(whole, stop) != whole:
        return
    *early, held = _until(stop, parts)
    assert "".join(early) + held == whole
    assert not held or any(s.startswith(held) for s in stop)
    assert not any(s.startswith(whole[start:]) for s in stop for start in range(len(whole) - len(held)))


# --- any answer ---------------------------------------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn, arch: Arch) -> list[int]:
    """Ids that try to break a stream: bytes, parts of the turn end, white space, marks, anything."""
    turn_end = official_template(arch).turn_end
    texts = [
        turn_end,
        turn_end[:-1],
        turn_end[:3],
        turn_end[3:],
        " ",
        "\n",
        "  a",
        "b ",
        EMOJI,
        "é",
        "\u3000",
        "\u2028",
    ]
    parts = st.one_of(
        st.sampled_from(texts).map(lambda text: ids_of(arch, text)),
        st.integers(0, 1002).map(lambda token: [token]),
        st.binary(min_size=1, max_size=3).map(lambda data: ids_of(arch, data)),
    )
    return [token for part in draw(st.lists(parts, max_size=12)) for token in part]


@pytest.mark.parametrize("arch", ARCHS)
@given(data=st.data())
def test_a_stream_adds_up_to_the_officially_filtered_text(arch: Arch, data: st.DataObject) -> None:
    ids = data.draw(answers(arch))
    parts = list(tiny(arch).stream(iter(ids)))
    assert "".join(parts) == tiny(arch).decode(ids) == officially_filtered(arch, ids)
    assert all(parts)


class NothingMoreYetError(Exception):
    """The model has not decided on the next id."""


def ids_so_far(ids: list[int]) -> Iterator[int]:
    yield from ids
    raise NothingMoreYetError


@pytest.mark.parametrize("arch", ARCHS)
@given(data=st.data(), stop=STOPS)
def test_what_was_streamed_stays_whatever_comes_next(arch: Arch, data: st.DataObject, stop: tuple[str, ...]) -> None:
    first, rest = data.draw(answers(arch)), data.draw(answers(arch))
    streamed = []
    with suppress(NothingMoreYetError):
        for part in tiny(arch).stream(ids_so_far(first), stop):
            streamed.append(part)
    assert tiny(arch).decode(first + rest, stop).startswith("".join(streamed))


def officially_filtered(arch: Arch, ids: list[int]) -> str:
    """The official filter on the decoding of its own tokenizer class, for answers without the start mark."""
    known = [token for token in ids if library(arch).id_to_token(token) is not None]
    if arch == "phi3":
        text = library(arch).decode(known, skip_special_tokens=False)
    else:
        text = sentencepiece_text([library(arch).id_to_token(token) or "" for token in known])
    return text.split(official_template(arch).turn_end)[0].strip()


def sentencepiece_text(pieces: list[str]) -> str:
    """SentencePiece's rule for bytes: of each run, a valid character is taken, else one byte becomes U+FFFD."""
    text = ""
    while pieces:
        run = bytes(int(piece[3:5], 16) for piece in takewhile(lambda piece: piece.startswith("<0x"), pieces))
        if not run:
            text += pieces.pop(0).replace("▁", " ")
            continue
        length = next((n for n in (1, 2, 3, 4) if is_character(run[:n])), 0)
        text += run[:length].decode() or "\ufffd"
        del pieces[: length or 1]
    return text


def is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


# --- the real phi3 tokenizer --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_phi3(shared_data: Path) -> TextTokenizer:
    data = (shared_data / "tokenizers" / "phi3" / "tokenizer.json").read_bytes()
    return TextTokenizer(data, official_template("phi3"))


def test_the_real_phi3_prompt_has_the_official_ids(real_phi3: TextTokenizer, golden_prompts: dict[str, Any]) -> None:
    case = golden_prompts["phi3"]["prompts"]["demo"]
    prompt = real_phi3.encode_prompt(case["question_in"], [1], tokens_per_crop=256)[0].tolist()
    start, end = prompt.index(32011), prompt.index(32012)
    assert prompt[:2] == [1, 32006]
    assert prompt[start : end + 1] == [32011, *[32013] * 256, 32012]
    # "\nWhat is in the picture?" and no newline after <|user|>, <|end|> or <|assistant|>.
    assert prompt[start - 2 : start] == [32007, 32010]
    assert prompt[end + 1 :] == [29871, 13, 5618, 338, 297, 278, 7623, 29973, 32007, 32001]


def test_the_real_phi3_vectors_stream_back_to_their_text(real_phi3: TextTokenizer, shared_data: Path) -> None:
    vectors = (shared_data / "tokenizers" / "phi3" / "vectors.jsonl").read_text(encoding="utf-8").splitlines()
    for vector in map(json.loads, vectors):
        if "<|" not in vector["text"]:
            assert "".join(real_phi3.stream(vector["ids"])) == vector["text"].strip()
