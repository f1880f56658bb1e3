"""Questions as JSON lines: what a line may hold, and that every line has its record, in its place."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_prompts import picture_file
from trol_runtime import TroL
from trol_runtime.cpu_backend import CpuBackend
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.prompt import DEFAULT_QUESTION
from trol_runtime.questions import MAX_LINE, Question, answer_questions, read_question

GREEDY = GenerationConfig()
KEYS = (
    "prompt, image, images, id, max_new_tokens, min_new_tokens, num_beams, length_penalty, early_stopping, "
    "temperature, top_k, top_p, min_p, repetition_penalty, seed, stop"
)
EXPECTED = 'expected an object such as {"prompt": "What is it?", "image": "x.png"}'


# --- a line


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ('{"prompt": "Why?"}', Question("Why?", (), GREEDY)),
        ('{"prompt": "Why?", "id": [1, {"a": null}]}', Question("Why?", (), GREEDY)),
        ('{"prompt": "", "images": []}', Question("", (), GREEDY)),
        ('{"image": "a.png"}', Question(DEFAULT_QUESTION, ("a.png",), GREEDY)),
        (
            '{"prompt": "<image> or <image>?", "images": ["a", "b"]}',
            Question("<image> or <image>?", ("a", "b"), GREEDY),
        ),
        ('{"prompt": "x", "num_beams": 5}', Question("x", (), GenerationConfig(num_beams=5))),
        ('{"prompt": "x", "stop": ["a", "b"]}', Question("x", (), GenerationConfig(stop=("a", "b")))),
        ('{"prompt": "x", "stop": "a"}', Question("x", (), GenerationConfig(stop=("a",)))),
        ('{"prompt": "x", "temperature": 1, "seed": null}', Question("x", (), GenerationConfig(temperature=1))),
        ('\t{"prompt": "\\u00e9\\ud83c\\udf89\\u0000"}\r\n', Question("é🎉\0", (), GREEDY)),
    ],
)
def test_a_line_is_a_question_with_its_pictures_and_options(line: str, question: Question) -> None:
    assert read_question(line) == question


def test_the_options_of_a_line_go_before_those_of_the_command() -> None:
    defaults = {"max_new_tokens": 9, "temperature": 0.5}
    question = read_question('{"prompt": "x", "temperature": 2.0, "top_k": 3}', defaults)
    assert question.config == GenerationConfig(max_new_tokens=9, temperature=2.0, top_k=3)


def test_options_of_the_command_and_of_a_line_complete_each_other_or_contradict() -> None:
    question = read_question('{"prompt": "x", "temperature": 2.0}', {"seed": 3})
    assert question.config == GenerationConfig(temperature=2.0, seed=3)
    question = read_question('{"prompt": "x", "num_beams": 5, "top_k": null}', {"top_k": 3})
    assert question.config == GenerationConfig(num_beams=5)
    question = read_question('{"prompt": "x", "num_beams": null, "top_k": 3}', {"num_beams": 5})
    assert question.config == GenerationConfig(top_k=3)
    with pytest.raises(UsageError, match=r"^seed is 3, but nothing is drawn; "):
        read_question('{"prompt": "x"}', {"seed": 3})


DEEP = 100_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(
            "nonsense", f"the line is no JSON (Expecting value: line 1 column 1 (char 0)); {EXPECTED}", id="no JSON"
        ),
        pytest.param("[1]", f"the line is [1]; {EXPECTED}", id="a list"),
        pytest.param("null", f"the line is None; {EXPECTED}", id="null"),
        pytest.param('"x"', f"the line is 'x'; {EXPECTED}", id="a text"),
        pytest.param("{}", 'nothing to ask: give "prompt", or "image", or both', id="nothing asked"),
        pytest.param('{"images": []}', 'nothing to ask: give "prompt", or "image", or both', id="no pictures"),
        pytest.param('{"promt": "x"}', f"unknown key 'promt'; known are: {KEYS}", id="a typo"),
        pytest.param('{"prompt": 3}', '"prompt" is 3, expected a text', id="a number as prompt"),
        pytest.param('{"prompt": null}', '"prompt" is None, expected a text', id="null as prompt"),
        pytest.param('{"image": ["x"]}', "\"image\" is ['x'], expected a text", id="a list as image"),
        pytest.param(
            '{"images": "x"}',
            '"images" is \'x\', expected a list of file names; one goes into "image"',
            id="one of images",
        ),
        pytest.param('{"images": ["a", 7]}', '"images[1]" is 7, expected a text', id="a number among images"),
        pytest.param(
            '{"image": "a", "images": ["b"]}',
            'both "image" and "images" are given; name one picture or list several',
            id="image and images",
        ),
        pytest.param('{"prompt": "x", "prompt": "y"}', "key 'prompt' is given twice; keep one", id="a key twice"),
        pytest.param('{"prompt": "x", "id": {"a": 1, "a": 2}}', "key 'a' is given twice; keep one", id="twice inside"),
        pytest.param('{"prompt": "x", "id": NaN}', "NaN is no JSON; expected a number", id="NaN"),
        pytest.param('{"prompt": "x", "top_p": -Infinity}', "-Infinity is no JSON; expected a number", id="infinity"),
        pytest.param(
            '{"prompt": "x", "id": 1e999}', "the number '1e999' is beyond what a float holds", id="an infinite float"
        ),
        pytest.param(
            f'{{"prompt": "x", "id": {"9" * 10_000}}}',
            "a number has 10000 digits; expected 64 or fewer",
            id="an endless number",
        ),
        pytest.param(
            "[" * DEEP, "the line is nested too deeply; expected one object of texts and numbers", id="nested lists"
        ),
        pytest.param(
            '{"id":' * DEEP,
            "the line is nested too deeply; expected one object of texts and numbers",
            id="nested objects",
        ),
        pytest.param(
            f'{{"prompt": "{"x" * MAX_LINE}"}}',
            f"the line is longer than {MAX_LINE} characters; no engine holds such a prompt",
            id="a long line",
        ),
        pytest.param(
            r'{"prompt": "ab\udcff"}',
            "character 3 of \"prompt\" is '\\udcff', no Unicode text: write it in UTF-8",
            id="half a character in the prompt",
        ),
        pytest.param(
            r'{"images": ["a", "\ud800"]}',
            "character 1 of \"images[1]\" is '\\ud800', no Unicode text: write it in UTF-8",
            id="half a character in a name",
        ),
        pytest.param(
            '{"prompt": "x", "num_beams": 2.5}',
            "num_beams is 2.5, expected a whole number, 1 or more",
            id="half a beam",
        ),
        pytest.param(
            '{"prompt": "x", "num_beams": true}',
            "num_beams is True, expected a whole number, 1 or more",
            id="a boolean",
        ),
        pytest.param(
            '{"prompt": "x", "stop": [1]}', "stop is [1], expected a text or a list of texts", id="a number as stop"
        ),
        pytest.param(
            '{"prompt": "x", "early_stopping": "no"}',
            "early_stopping is 'no', expected True or False",
            id="a text for a boolean",
        ),
        pytest.param(
            '{"prompt": "x", "min_new_tokens": 9, "max_new_tokens": 3}',
            "min_new_tokens is 9, more than max_new_tokens, 3; lower the one or raise the other",
            id="contradictory options",
        ),
    ],
)
def test_a_bad_line_is_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_question(line)
    assert str(error.value) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()), lambda inner: st.lists(inner)
)
NAMES = st.sampled_from(KEYS.split(", ")) | st.text(max_size=3)


@given(st.text() | st.dictionaries(NAMES, JSON).map(json.dumps))
def test_any_line_is_a_question_or_one_line_of_an_error(line: str) -> None:
    message = ""
    try:
        read_question(line)
    except UsageError as error:
        message = str(error)
    assert "\n" not in message


# --- many lines


@pytest.fixture(scope="module")
def model(micro_engine: Callable[..., Path]) -> TroL:
    return TroL.load(micro_engine("phi3"))


@pytest.fixture
def image(tmp_path: Path) -> str:
    return str(picture_file(tmp_path))


@pytest.fixture
def asked(model: TroL, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[list[dict[str, Any]], list[str]]]:
    """Records and lines on stderr of some lines; of the failure at the end, the message stands behind them."""

    def ask(*lines: dict[str, Any] | bytes, keep_prefix: bool = True) -> tuple[list[dict[str, Any]], list[str]]:
        data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        failure = []
        try:
            answer_questions(
                model,
                io.BytesIO(data),
                {"max_new_tokens": 8},
                keep_prefix=keep_prefix,
                exif=False,
                load_ms=80.0,
            )
        except TrolError as error:
            failure.append(str(error))
        captured = capsys.readouterr()
        return [json.loads(line) for line in captured.out.splitlines()], captured.err.splitlines() + failure

    return ask


def test_a_record_has_the_documented_keys(asked: Any, model: TroL, image: str) -> None:
    (record,), _ = asked({"prompt": "what?", "image": image, "id": {"a": [1]}})
    answer = model.start("what?", [image], max_new_tokens=8)
    timings = record.pop("timings_ms")
    assert record == {
        "id": {"a": [1]},
        "text": "".join(answer),
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "image_tokens": answer.image_tokens,
        "new_tokens": len(answer.token_ids),
        "reused_tokens": 0,
    }
    assert list(timings) == ["load", "vision", "prefill", "decode"]
    assert timings["load"] == 80.0


def test_a_record_has_an_id_only_where_the_line_has_one(asked: Any) -> None:
    records, _ = asked({"prompt": "x"}, {"prompt": "x", "id": None})
    assert ["id" in record for record in records] == [False, True]


def test_lines_about_the_same_picture_read_it_once(
    asked: Any, model: TroL, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode = [], CpuBackend.encode

    def counted(self: CpuBackend, pixel_values: Any) -> Any:
        encoded.append(len(pixel_values))
        return encode(self, pixel_values)

    monkeypatch.setattr(CpuBackend, "encode", counted)
    questions = ["what?", "why?", "when?"]
    records, _ = asked(*({"prompt": question, "image": image} for question in questions))
    assert len(encoded) == 1
    assert records[0]["reused_tokens"] == 0
    assert all(record["reused_tokens"] > record["image_tokens"] for record in records[1:])
    assert [record["text"] for record in records] == [
        model.generate(question, [image], max_new_tokens=8) for question in questions
    ]


def test_without_a_kept_prefix_every_line_is_read_whole(asked: Any, image: str) -> None:
    records, err = asked(*({"prompt": "what?", "image": image} for _ in range(2)), keep_prefix=False)
    assert [record["reused_tokens"] for record in records] == [0, 0]
    assert records[0]["token_ids"] == records[1]["token_ids"]
    assert not any("kept prefix" in line for line in err)


def test_the_memory_of_the_kept_prefix_is_said_with_the_first_answer_and_whenever_it_has_grown(asked: Any) -> None:
    short, long = {"prompt": "x"}, {"prompt": "z! " * 70}
    _, err = asked(short, short, long, short, long)
    assert [line.partition(":")[0].partition(" takes ")[0] for line in err] == [
        *("line 1", "the kept prefix", "line 2", "line 3", "the kept prefix", "line 4", "line 5")
    ]


def test_an_answer_that_was_drawn_can_be_repeated_with_the_seed_of_its_record(asked: Any) -> None:
    drawn = {"prompt": "x", "temperature": 5.0}
    (first,), (line, *_) = asked(drawn)
    (again,), _ = asked({**drawn, "seed": first["seed"]})
    assert again["token_ids"] == first["token_ids"]
    assert line.endswith(f", seed {first['seed']}")


def test_every_line_has_its_times_on_stderr(asked: Any) -> None:
    _, err = asked({"prompt": "x"}, b"", b"nonsense", {"prompt": "y"})
    assert [line.split(" tokens")[0] for line in (err[0], err[2])] == ["line 1: prompt 133", "line 4: prompt 133"]


def test_a_bad_line_has_its_error_in_its_place_and_the_others_are_answered(asked: Any, tmp_path: Path) -> None:
    records, err = asked(
        {"prompt": "x", "id": 1},
        b"nonsense",
        {"promt": "x", "id": 3},
        {"prompt": "x", "image": str(tmp_path / "none.png"), "id": 4},
        {"prompt": "<image> <image>", "image": str(picture_file(tmp_path)), "id": 5},
        {"prompt": "z! " * 300, "id": 6},
        {"prompt": "x", "id": 7},
    )
    assert [(record.get("id"), record.get("line")) for record in records] == [
        *((1, None), (None, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, None))
    ]
    errors = [record.get("error") for record in records]
    assert errors[2] == f"unknown key 'promt'; known are: {KEYS}"
    assert errors[3].startswith(f"picture {str(tmp_path / 'none.png')!r}: ")
    assert errors[4].startswith("the prompt holds 2 <image> for 1 picture(s)")
    assert errors[5].startswith("the prompt has ")
    assert records[0]["token_ids"] == records[6]["token_ids"]
    assert err[-1] == "5 of 7 questions failed; their errors stand in the place of their answers"


@pytest.mark.parametrize(
    ("line", "echoed"),
    [
        (b'{"id": 1, "prompt": "x", "prompt": "y"}', 1),
        (b'{"top_p": NaN, "id": 1}', 1),
        (b'{"id": 1, "top_p": 1e999}', 1),
        (b'{"id": 1, "seed": 1%s}' % (b"0" * 100), 1),
        (b'{"id": "a\xff", "prompt": 1}', "a\udcff"),
        (b'{"id": NaN, "prompt": "x"}', "NaN"),
        (b'{"id": [-1e999], "prompt": "x"}', ["-1e999"]),
        (b'{"id": 1, "id": 2, "prompt": "x"}', 2),
    ],
)
def test_whatever_is_wrong_with_a_line_of_json_its_id_comes_back(asked: Any, line: bytes, echoed: object) -> None:
    (record,), _ = asked(line)
    assert set(record) == {"id", "line", "error"}
    assert record["id"] == echoed


def test_a_pipe_or_a_device_as_picture_is_refused_rather_than_waited_for(asked: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (record, _), _ = asked({"image": str(tmp_path / "pipe.png")}, {"prompt": "x"})
    assert record["error"].startswith(f"picture {str(tmp_path / 'pipe.png')!r}: a pipe or a device; ")


def test_a_line_that_fails_in_the_middle_of_its_answer_has_its_error(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = CpuBackend.decode, []

    def broken(self: CpuBackend, *arguments: Any) -> Any:
        calls.append(arguments)
        logits = decode(self, *arguments)
        return np.full_like(logits, np.nan) if len(calls) == 3 else logits

    monkeypatch.setattr(CpuBackend, "decode", broken)
    records, _ = asked({"prompt": "x"}, {"prompt": "x"})
    assert records[0]["error"].startswith("the logits of row 0 are not finite; ")
    assert records[1]["new_tokens"] == 8


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\n\t", b"\xef\xbb\xbf"])
def test_blank_lines_are_passed_over(asked: Any, data: bytes) -> None:
    assert asked(data) == ([], [])


def test_a_byte_order_mark_and_carriage_returns_are_no_harm(asked: Any) -> None:
    records, _ = asked(b'\xef\xbb\xbf{"prompt": "x"}\r', b'{"prompt": "y"}\r')
    assert [record["new_tokens"] for record in records] == [8, 8]


def test_bytes_that_are_no_utf8_are_the_fault_of_their_line_alone(asked: Any) -> None:
    records, _ = asked(b'{"prompt": "\xff"}', b'{"prompt": "x"}')
    assert records[0] == {
        "line": 1,
        "error": "character 1 of \"prompt\" is '\\udcff', no Unicode text: write it in UTF-8",
    }
    assert records[1]["new_tokens"] == 8


@pytest.mark.parametrize("character", ["x", "é", "🎉"])
def test_a_line_that_hardly_ends_is_refused_and_the_next_is_answered(asked: Any, character: str) -> None:
    long = f'{{"prompt": "{character * 5 * MAX_LINE}"}}'.encode()
    records, _ = asked({"prompt": "x"}, long, {"prompt": "y"})
    assert [record.get("line") for record in records] == [None, 2, None]
    assert records[1]["error"].startswith("the line is longer than ")


def test_an_id_as_deep_as_can_be_read_can_be_echoed(asked: Any) -> None:
    """Reading and writing run out of Python's stack at about the same depth; none of it may end the run."""
    depths = range(1, 1200, 7)
    records, _ = asked(*(f'{{"id": {"[" * depth}{"]" * depth}}}'.encode() for depth in depths))
    assert len(records) == len(depths)
    assert all(set(record) in ({"id", "line", "error"}, {"line", "error"}) for record in records)
