"""trol-run: answers on stdout, everything else on stderr, and one line for what is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from small_prompts import gradient, picture_file
from trol_runtime import TroL, memory_need, run_command_line
from trol_runtime.bundle import Bundle
from trol_runtime.command import run_command
from trol_runtime.cpu_backend import CpuBackend
from trol_runtime.generation import DEFAULT_MAX_NEW_TOKENS
from trol_runtime.prompt import DEFAULT_QUESTION
from trol_runtime.run_command_line import EXAMPLES, main

Run = Callable[..., tuple[int, str, str]]

TIME = r"[\d.]+ m?s"

PROGRAM = "from trol_runtime.run_command_line import script; script()"


@pytest.fixture
def engine(micro_engine: Callable[..., Path], arch: str) -> Path:
    return micro_engine(arch)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return picture_file(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of the command."""

    def command(*argv: str | Path | int) -> tuple[int, str, str]:
        code = run_command("trol-run", main, [str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def shell(argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own."""
    return subprocess.run([sys.executable, "-c", PROGRAM, *map(str, argv)], capture_output=True, check=False, **options)


# --- answers


def test_the_answer_goes_to_stdout_and_need_and_times_to_stderr(
    run: Run, engine: Path, image: Path, model: TroL
) -> None:
    code, out, err = run(engine, "--image", image, "--prompt", "what?", "--max-new-tokens", 9)
    expected = model.start("what?", [image], max_new_tokens=9)
    assert (code, out) == (0, "".join(expected) + "\n")
    need, loaded, summary = err.splitlines()
    assert need == f"{engine} needs {memory_need.memory_need(model.manifest)}"
    assert re.fullmatch(r"loaded in \d+\.\d\d s", loaded)
    prompt = rf"prompt {expected.prompt_tokens} tokens \({expected.image_tokens} of pictures, 0 reused\)"
    each = rf"{len(expected.token_ids)} tokens, {TIME} each after the first"
    assert re.fullmatch(rf"vision {TIME}, {prompt} in {TIME}, answer {each}", summary)


def test_without_a_prompt_it_asks_for_a_description(run: Run, engine: Path, image: Path) -> None:
    asked = run(engine, "--image", image, "--prompt", DEFAULT_QUESTION, "--max-new-tokens", 9)
    assert run(engine, "--image", image, "--max-new-tokens", 9)[:2] == asked[:2]


def test_an_empty_prompt_is_a_prompt(run: Run, engine: Path, image: Path, model: TroL) -> None:
    answer = run(engine, "--image", image, "--prompt", "", "--max-new-tokens", 9)
    assert answer[:2] == (0, model.generate("", [image], max_new_tokens=9) + "\n")


def test_text_alone_is_a_prompt(run: Run, engine: Path, model: TroL) -> None:
    code, out, _ = run(engine, "--prompt", "hello", "--max-new-tokens", 9)
    assert (code, out) == (0, model.generate("hello", max_new_tokens=9) + "\n")


def test_several_pictures_go_where_the_prompt_places_them(run: Run, engine: Path, tmp_path: Path, model: TroL) -> None:
    files = [picture_file(tmp_path, f"{n}.png", 20 + 10 * n, 30) for n in range(3)]
    question = "<image>, <image> or <image>?"
    options = [part for file in files for part in ("--image", file)]
    code, out, _ = run(engine, *options, "--prompt", question, "--max-new-tokens", 9)
    assert (code, out) == (0, model.generate(question, files, max_new_tokens=9) + "\n")


def test_a_dash_reads_a_picture_from_stdin(
    run: Run, engine: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(engine, "--image", image, "--max-new-tokens", 9)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(image.read_bytes())))
    assert run(engine, "--image", "-", "--max-new-tokens", 9)[:2] == expected[:2]


def test_stdin_by_the_name_of_its_device_is_refused_with_the_dash_to_type(engine: Path) -> None:
    process = shell([engine, "--image", "/dev/stdin"], input=b"")
    assert (process.returncode, process.stdout) == (1, b"")
    assert process.stderr.decode() == (
        "trol-run: picture '/dev/stdin': a pipe or a device; give the path of an image file; a pipe goes into "
        "trol-run --image -\n"
    )


def test_a_picture_comes_through_a_pipe(engine: Path, image: Path) -> None:
    from_file, from_pipe = (
        shell([engine, "--image", source, "--max-new-tokens", "9"], input=image.read_bytes()) for source in (image, "-")
    )
    assert (from_pipe.returncode, from_pipe.stdout) == (0, from_file.stdout)
    assert from_pipe.stdout


def test_exif_turns_pictures_upright(run: Run, engine: Path, tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 8
    gradient(40, 20).save(tmp_path / "turned.png", exif=exif)
    gradient(40, 20).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "upright.png")
    turned, upright = ("--image", tmp_path / "turned.png"), ("--image", tmp_path / "upright.png")
    expected = run(engine, *upright, "--max-new-tokens", 9)[:2]
    assert run(engine, *turned, "--exif", "--max-new-tokens", 9)[:2] == expected
    assert run(engine, *turned, "--max-new-tokens", 9)[:2] != expected


# --- JSON


def test_json_is_one_object_with_the_documented_keys(run: Run, engine: Path, image: Path, model: TroL) -> None:
    code, out, _ = run(engine, "--image", image, "--prompt", "what?", "--max-new-tokens", 9, "--json")
    expected = model.start("what?", [image], max_new_tokens=9)
    text = "".join(expected)
    assert code == 0
    assert out.count("\n") == 1
    record = json.loads(out)
    timings = record.pop("timings_ms")
    assert record == {
        "text": text,
        "token_ids": expected.token_ids,
        "finish_reason": expected.finish_reason,
        "prompt_tokens": expected.prompt_tokens,
        "image_tokens": expected.image_tokens,
        "new_tokens": len(expected.token_ids),
    }
    assert list(timings) == ["load", "vision", "prefill", "decode"]
    assert all(isinstance(value, float) and value > 0 for value in timings.values())


def test_the_load_time_covers_opening_and_verifying_the_file(
    run: Run, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening_s = 1000.0
    now, open_bundle = [0.0], Bundle.open

    def slow(path: Path) -> Bundle:
        now[0] += opening_s
        return open_bundle(path)

    monkeypatch.setattr(run_command_line, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Bundle, "open", slow)
    record = json.loads(run(engine, "--prompt", "hello", "--max-new-tokens", 1, "--json")[1])
    assert record["timings_ms"]["load"] == 1e3 * opening_s


def test_json_without_a_picture_has_no_vision_time(run: Run, engine: Path) -> None:
    record = json.loads(run(engine, "--prompt", "hello", "--max-new-tokens", 3, "--json")[1])
    assert (record["image_tokens"], record["timings_ms"]["vision"]) == (0, 0)
    assert (record["finish_reason"], record["new_tokens"]) == ("length", 3)


# --- how to answer


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (["--num-beams", "3"], {"num_beams": 3}),
        (["--temperature", "1.5", "--seed", "7"], {"temperature": 1.5, "seed": 7}),
        (
            ["--top-k", "20", "--top-p", "0.9", "--min-p", "0.01", "--seed", "1"],
            {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 1},
        ),
        (["--repetition-penalty", "1.5", "--min-new-tokens", "5"], {"repetition_penalty": 1.5, "min_new_tokens": 5}),
        (["--stop", "a", "--stop", "e"], {"stop": ("a", "e")}),
    ],
)
def test_a_flag_is_the_option_of_its_name(
    run: Run, engine: Path, model: TroL, options: list[str], config: dict[str, Any]
) -> None:
    answer = run(engine, "--prompt", "hello", "--max-new-tokens", 12, *options)
    assert answer[:2] == (0, model.generate("hello", max_new_tokens=12, **config) + "\n")


def test_a_prompt_read_in_chunks_is_answered_alike(
    run: Run, engine: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[int] = []
    extend = CpuBackend.extend

    def counted(self: CpuBackend, cache: Any, input_ids: Any, *rest: Any) -> Any:
        chunks.append(input_ids.shape[1])
        return extend(self, cache, input_ids, *rest)

    whole = run(engine, "--image", image, "--max-new-tokens", 9)
    monkeypatch.setattr(CpuBackend, "extend", counted)
    assert run(engine, "--image", image, "--max-new-tokens", 9, "--prefill-chunk", 50)[:2] == whole[:2]
    assert len(chunks) > 1
    assert set(chunks[:-1]) == {50}


def test_more_beams_than_the_engine_takes_says_what_to_rebuild_with(run: Run, engine: Path) -> None:
    code, out, err = run(engine, "--prompt", "x", "--num-beams", 4)
    assert (code, out) == (1, "")
    assert "--max-batch 4" in err.splitlines()[-1]


# --- many questions


def test_jsonl_answers_every_line_of_a_file(run: Run, engine: Path, image: Path, tmp_path: Path, model: TroL) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"image": "{image}", "id": 1}}\n{{"prompt": "hello", "max_new_tokens": 3, "id": 2}}\n')
    code, out, _ = run(engine, "--jsonl", file, "--max-new-tokens", 9)
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(record["id"], record["text"]) for record in records] == [
        (1, model.generate(DEFAULT_QUESTION, [image], max_new_tokens=9)),
        (2, model.generate("hello", max_new_tokens=3)),
    ]


def test_a_line_may_give_what_an_option_of_the_command_lacks(
    run: Run, engine: Path, tmp_path: Path, model: TroL
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "hello", "temperature": 5}\n{"prompt": "hello", "seed": null}\n')
    code, out, _ = run(engine, "--jsonl", file, "--max-new-tokens", 9, "--seed", 3)
    drawn, greedy = (json.loads(line) for line in out.splitlines())
    assert (code, drawn["seed"], "seed" in greedy) == (0, 3, False)
    assert drawn["text"] == model.generate("hello", max_new_tokens=9, temperature=5, seed=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "--seed is -1, expected a whole number from 0 to 18446744073709551615"),
        (["--num-beams", "0"], "--num-beams is 0, expected a whole number, 1 or more"),
        (["--seed", "1", "--num-beams", "2", "--min-p", "2"], "--min-p is 2.0, expected a number from 0 to 1"),
    ],
)
def test_a_value_that_no_line_can_make_right_is_refused_before_the_engine_is_opened(
    run: Run, options: list[str], message: str
) -> None:
    assert run("missing.plan", "--jsonl", "missing.jsonl", *options) == (2, "", f"trol-run: {message}\n")


@pytest.mark.parametrize(
    ("options", "both_passes"),
    [
        (["--prompt", "x"], False),
        (["--prompt", "x", "--prefill-chunk", "50"], True),
        (["--chat"], True),
        (["--chat", "--no-keep-prefix"], False),
        (["--jsonl", os.devnull], True),
        (["--jsonl", os.devnull, "--no-keep-prefix"], False),
    ],
)
def test_the_need_counts_what_is_kept(
    run: Run, engine: Path, model: TroL, monkeypatch: pytest.MonkeyPatch, options: list[str], both_passes: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    err = run(engine, *options, "--max-new-tokens", 1)[2]
    need = memory_need.memory_need(model.manifest, both_passes=both_passes)
    assert err.splitlines()[0] == f"{engine} needs {need}"


def test_jsonl_reads_stdin(engine: Path) -> None:
    process = shell([engine, "--jsonl", "-", "--max-new-tokens", "3"], input=b'{"prompt": "x"}\n{"prompt": "y"}')
    assert (process.returncode, process.stdout.count(b"\n")) == (0, 2)


def test_a_line_that_failed_makes_exit_code_1_and_one_line(run: Run, engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "x"}\nnonsense\n{"prompt": "x"}\n')
    code, out, err = run(engine, "--jsonl", file, "--max-new-tokens", 3)
    assert (code, ["error" in json.loads(line) for line in out.splitlines()]) == (1, [False, True, False])
    assert err.splitlines()[-1] == (
        "trol-run: 1 of 3 questions failed; their errors stand in the place of their answers"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "No such file or directory"), ("folder", "Is a directory"), ("", "No such file or directory")],
)
def test_a_file_of_questions_that_is_none_is_refused_before_the_engine_is_opened(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    message = f"questions {name!r}: {message}; name a file with one JSON object a line"
    assert run("missing.plan", "--jsonl", name) == (1, "", f"trol-run: {message}\n")


# --- a chat: the rest is in test_chat_command


def test_a_chat_begins_with_the_prompt_and_its_picture(
    run: Run, engine: Path, image: Path, model: TroL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("and now?\n"))
    code, out, _ = run(engine, "--chat", "--image", image, "--prompt", "what?", "--max-new-tokens", 9)
    chat = model.chat(max_new_tokens=9)
    first, second = "".join(chat.ask("what?", [image])), "".join(chat.ask("and now?"))
    assert (code, out) == (0, f"{first}\n{second}\n")


def test_a_warning_is_one_line(run: Run, micro_engine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    start = TroL.start

    def warned(self: TroL, *arguments: Any, **options: Any) -> Any:
        warnings.warn("the prompt is read again", stacklevel=1)
        return start(self, *arguments, **options)

    monkeypatch.setattr(TroL, "start", warned)
    code, _, err = run(micro_engine("phi3"), "--prompt", "x", "--max-new-tokens", 3)
    assert (code, err.splitlines()[2]) == (0, "trol-run: the prompt is read again")


# --- limits


def test_a_budget_beyond_the_room_left_is_clipped_and_said_on_stderr(run: Run, engine: Path) -> None:
    code, out, err = run(engine, "--prompt", "hello", "--max-new-tokens", 5000, "--json")
    record = json.loads(out)
    room = 640 - record["prompt_tokens"]
    assert code == 0
    assert err.splitlines()[-1].endswith(f"; the answer is limited to {room} tokens: the engine holds 640")
    assert record["new_tokens"] <= room


def test_a_prompt_too_long_says_what_to_rebuild_with(run: Run, engine: Path) -> None:
    code, out, err = run(engine, "--prompt", "z! " * 300)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("trol-run: the prompt has ")
    assert "rebuild the engine with --max-seq " in err.splitlines()[-1]


def test_too_little_memory_is_one_line_with_the_need(
    run: Run, micro_engine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = micro_engine("phi3", "fp16")
    monkeypatch.setattr(memory_need, "memory_available_bytes", lambda: 1000)
    code, out, err = run(engine, "--prompt", "hello")
    need, message = err.splitlines()
    assert (code, out) == (1, "")
    assert need.startswith(f"{engine} needs ")
    assert message.startswith(f"trol-run: the engine {need.removeprefix(f'{engine} ')}, 1000 bytes are available; ")


# --- wrong calls: one line, nothing on stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to ask: give --image FILE, or --prompt TEXT, or both, or --chat, or --jsonl FILE"),
        (["--image", "-", "--image", "-"], "--image - and --image - both read stdin; name a file instead"),
        (["--image", "-", "--chat"], "--image - and --chat both read stdin; name a file instead"),
        (["--chat", "--jsonl", "x"], "--chat and --jsonl exclude each other; run trol-run twice"),
        *(
            (
                ["--jsonl", "x", *given],
                "--jsonl takes questions and pictures from its file; leave out --image and --prompt",
            )
            for given in (["--image", "x.png"], ["--prompt", "x"], ["--prompt", ""])
        ),
        *(
            ([*given, "--json"], "--json is for a single question; leave it out (--jsonl answers in JSON anyway)")
            for given in (["--chat"], ["--jsonl", "x"])
        ),
        (
            ["--prompt", "x", "--no-keep-prefix"],
            "--no-keep-prefix is for --chat and --jsonl; a single question keeps none, leave it out",
        ),
        (["--prompt", "x", "--max-new", "3"], "unrecognized arguments: --max-new 3; see: trol-run --help"),
        (["--promt", "x"], "unrecognized arguments: --promt x; see: trol-run --help"),
        (["--prompt"], "argument --prompt: expected one argument; see: trol-run --help"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(run: Run, engine: Path, options: list[str], message: str) -> None:
    assert run(engine, *options) == (2, "", f"trol-run: {message}\n")


WHOLE = "a whole number, 1 or more"
FACTOR = "a number from 0.000001 to 1000000"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("--max-new-tokens", value, f"is {value}, expected {WHOLE}") for value in ("0", "-1")),
        ("--max-new-tokens", "abc", "invalid int value: 'abc'"),
        ("--min-new-tokens", "-1", "is -1, expected a whole number, 0 or more"),
        ("--min-new-tokens", "1.5", "invalid int value: '1.5'"),
        ("--min-new-tokens", "", "invalid int value: ''"),
        *(("--num-beams", value, f"is {value}, expected {WHOLE}") for value in ("0", "-5")),
        ("--num-beams", "five", "invalid int value: 'five'"),
        *(
            (
                "--temperature",
                value,
                f"is {float(value)}, expected {FACTOR}; leave it out to take the best token each time",
            )
            for value in ("0", "-1", "nan", "inf")
        ),
        ("--temperature", "hot", "invalid float value: 'hot'"),
        *(
            ("--top-k", value, f"is {value}, expected {WHOLE}; leave it out to draw from all tokens")
            for value in ["0", "-1"]
        ),
        ("--top-k", "2.0", "invalid int value: '2.0'"),
        *(
            (
                "--top-p",
                value,
                f"is {float(value)}, expected a number above 0, at most 1; leave it out to draw from all tokens",
            )
            for value in ("0", "1.1", "nan")
        ),
        *(("--min-p", value, f"is {float(value)}, expected a number from 0 to 1") for value in ("-0.1", "2", "inf")),
        *(
            ("--repetition-penalty", value, f"is {float(value)}, expected {FACTOR}; 1 penalises nothing")
            for value in ("0", "-1", "nan")
        ),
        *(
            ("--seed", value, f"is {value}, expected a whole number from 0 to 18446744073709551615")
            for value in ("-1", "18446744073709551616")
        ),
        ("--seed", "0x10", "invalid int value: '0x10'"),
        ("--stop", "", "holds an empty text, which would end every answer before it begins; leave it out"),
        *(("--prefill-chunk", value, f"is {value}, expected 1 or more") for value in ("0", "-256")),
        ("--prefill-chunk", "all", "invalid int value: 'all'"),
    ],
)
def test_a_wrong_value_is_refused_before_the_engine_is_opened(run: Run, option: str, value: str, message: str) -> None:
    shown = f"argument {option}: {message}; see: trol-run --help" if "invalid" in message else f"{option} {message}"
    assert run("missing.plan", "--prompt", "x", option, value) == (2, "", f"trol-run: {shown}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--num-beams", "2", "--temperature", "0.5", "--top-p", "0.5"],
            "--num-beams is 2 and --temperature and --top-p given, but beams are not drawn; set --num-beams to 1, or "
            "leave out --temperature and --top-p",
        ),
        (
            ["--seed", "3"],
            "--seed is 3, but nothing is drawn; give --temperature, --top-k, --top-p or --min-p too, or leave out "
            "--seed",
        ),
        (
            ["--min-new-tokens", "9", "--max-new-tokens", "8"],
            "--min-new-tokens is 9, more than --max-new-tokens, 8; lower the one or raise the other",
        ),
    ],
)
def test_contradictory_options_are_refused_in_the_words_of_the_flags(
    run: Run, options: list[str], message: str
) -> None:
    assert run("missing.plan", "--prompt", "x", *options) == (2, "", f"trol-run: {message}\n")


@pytest.mark.parametrize(("reader", "options"), [("--image -", []), ("--jsonl -", []), ("--chat", ["--prompt", "x"])])
def test_a_closed_stdin_is_a_wrong_call_where_it_is_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, reader: str, options: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    message = f"trol-run: {reader} reads stdin, which is closed; pipe its input in\n"
    assert run("missing.plan", *reader.split(), *options) == (2, "", message)


def test_no_arguments_at_all_is_a_wrong_call(run: Run) -> None:
    message = "the following arguments are required: engine.plan; see: trol-run --help"
    assert run() == (2, "", f"trol-run: {message}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty (0 bytes); expected an image file such as PNG or JPEG"),
        (b"I am no picture\n", "not in an image format that Pillow reads; expected an image file such as PNG or JPEG"),
        (None, "No such file or directory; give the path of an image file"),
    ],
)
def test_a_picture_that_is_none_is_one_line_and_exit_code_1(
    run: Run, engine: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "x.png"
    if content is not None:
        file.write_bytes(content)
    assert run(engine, "--image", file) == (1, "", f"trol-run: picture {str(file)!r}: {message}\n")


def test_a_truncated_picture_is_one_line_and_exit_code_1(run: Run, engine: Path, image: Path) -> None:
    image.write_bytes(image.read_bytes()[:500])
    code, out, err = run(engine, "--image", image)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"trol-run: picture {str(image)!r}: damaged or of an unsupported kind (")


def test_an_empty_stdin_is_one_line_and_exit_code_1(engine: Path) -> None:
    process = shell([engine, "--image", "-"], input=b"")
    assert (process.returncode, process.stdout, process.stderr.count(b"\n")) == (1, b"", 1)
    assert b"empty (0 bytes)" in process.stderr


def test_as_many_tags_as_pictures(run: Run, engine: Path, image: Path) -> None:
    code, out, err = run(engine, "--image", image, "--prompt", "<image> and <image>")
    assert (code, out) == (2, "")
    assert err.splitlines()[2:] == [
        "trol-run: the prompt holds 2 <image> for 1 picture(s): write one <image> per picture, or none to put all "
        "pictures in front"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.plan", "no such file; make one with: trol-export --size"),
        ("folder.plan", "not a file"),
        ("text.plan", "not an engine file"),
        ("empty.plan", "engine"),
        ("truncated.plan", "engine"),
    ],
)
def test_an_engine_that_is_none_is_one_line_and_exit_code_1(
    run: Run, engine: Path, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder.plan").mkdir()
    (tmp_path / "text.plan").write_text("not an engine\n" * 1000)
    (tmp_path / "empty.plan").touch()
    (tmp_path / "truncated.plan").write_bytes(engine.read_bytes()[:-1000])
    code, out, err = run(tmp_path / name, "--prompt", "x")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"trol-run: {tmp_path / name}: ")
    assert message in err


def test_an_engine_without_tokenizer_is_refused(run: Run, tiny_engine: Callable[..., Path]) -> None:
    code, out, err = run(tiny_engine("internlm2"), "--prompt", "x")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("trol-run: the engine has no tokenizer; ")


def test_an_onnxruntime_that_cannot_be_imported_is_one_line(
    run: Run, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = run(engine, "--prompt", "x")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "trol-run: onnxruntime is installed and cannot be imported (import of onnxruntime halted; None in "
        "sys.modules); run: pip install --force-reinstall onnxruntime"
    )


# --- the process


def test_a_reader_that_goes_away_ends_the_command_quietly(engine: Path) -> None:
    """As `trol-run ... | head -c 1` does; the answer is longer than what is read."""
    argv = [sys.executable, "-c", PROGRAM, str(engine), "--prompt", "hello"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert [line.split(" ")[0] for line in err.splitlines()] == [str(engine), "loaded"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_answer_that_a_full_disk_cannot_take_is_one_line(engine: Path) -> None:
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-c", PROGRAM, str(engine), "--prompt", "hello"]
        process = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False)
    message = process.stderr.decode().splitlines()[2:]
    assert process.returncode == 1
    assert message == [
        "trol-run: no room left for the output (No space left on device); free some, or write it to another disk"
    ]


def test_a_closed_stderr_sends_nothing_to_stdout(engine: Path) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(engine), "--prompt", "hello", "--max-new-tokens", "5"]
    quiet, said = (
        subprocess.run(["sh", "-c", f'"$@" {streams}', "sh", *argv], capture_output=True, check=True)
        for streams in ("2>&-", "")
    )
    assert (quiet.stdout, quiet.stderr) == (said.stdout, b"")
    assert said.stderr


def test_nothing_warns_and_nothing_is_printed_besides(engine: Path, image: Path) -> None:
    process = shell([engine, "--image", image, "--max-new-tokens", "5"])
    assert process.returncode == 0
    assert process.stderr.count(b"\n") == 3  # need, load, times


def test_help_opens_with_what_to_type(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    out = capsys.readouterr().out
    for line, (arguments, meaning) in zip(out.splitlines(), EXAMPLES, strict=False):
        assert f"trol-run {arguments} " in line
        assert line.endswith(meaning)
    assert f"default: what the engine says, {DEFAULT_MAX_NEW_TOKENS}" in " ".join(out.split())


def test_help_needs_no_library() -> None:
    program = (
        "import sys\nfor name in ('numpy', 'PIL', 'tokenizers', 'onnxruntime'): sys.modules[name] = None\n"
        "from trol_runtime.run_command_line import script; script()"
    )
    process = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, check=True)
    assert process.stdout.startswith(b"usage: trol-run engine.plan --image x.png")


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (["--chat"], 256),
        (["--chat", "--prefill-chunk", "64"], 64),
        (["--chat", "--no-keep-prefix"], None),
        (["--prompt", "hello"], None),
        (["--prompt", "hello", "--prefill-chunk", "64"], 64),
    ],
)
def test_a_chat_reads_in_chunks_so_that_ctrl_c_does_not_wait_for_a_whole_prompt(
    engine: Path, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], tokens: int | None
) -> None:
    chunks: list[int | None] = []

    class WatchedTroL(TroL):
        def __init__(self, bundle: Bundle, *, prefill_chunk: int | None, **options: Any) -> None:
            chunks.append(prefill_chunk)
            super().__init__(bundle, prefill_chunk=prefill_chunk, **options)

    monkeypatch.setattr("trol_runtime.engine.TroL", WatchedTroL)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(engine, *words, "--max-new-tokens", 1)[0] == 0
    assert chunks == [tokens]
