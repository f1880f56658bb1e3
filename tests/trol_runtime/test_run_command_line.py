"""trol-run: answers on stdout, everything else on stderr, and one line for what is wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from small_prompts import gradient, picture_file
from trol_runtime import TroL, memory_need, run_command_line
from trol_runtime.bundle import Bundle
from trol_runtime.command import run_command
from trol_runtime.generation import DEFAULT_MAX_NEW_TOKENS
from trol_runtime.run_command_line import DEFAULT_PROMPT, EXAMPLES, main

Run = Callable[..., tuple[int, str, str]]

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


def test_the_answer_goes_to_stdout_and_the_need_to_stderr(run: Run, engine: Path, image: Path, model: TroL) -> None:
    code, out, err = run(engine, "--image", image, "--prompt", "what?", "--max-new-tokens", 9)
    assert (code, out) == (0, model.generate("what?", [image], max_new_tokens=9) + "\n")
    assert err == f"{engine} needs {memory_need.memory_need(model.manifest)}\n"


def test_without_a_prompt_it_asks_for_a_description(run: Run, engine: Path, image: Path) -> None:
    asked = run(engine, "--image", image, "--prompt", DEFAULT_PROMPT, "--max-new-tokens", 9)
    assert run(engine, "--image", image, "--max-new-tokens", 9) == asked


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
    assert run(engine, "--image", "-", "--max-new-tokens", 9) == expected


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
    assert run(engine, *turned, "--exif", "--max-new-tokens", 9) == run(engine, *upright, "--max-new-tokens", 9)
    assert run(engine, *turned, "--max-new-tokens", 9) != run(engine, *upright, "--max-new-tokens", 9)


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


# --- limits


def test_a_budget_beyond_the_room_left_is_clipped_and_said_on_stderr(run: Run, engine: Path) -> None:
    code, out, err = run(engine, "--prompt", "hello", "--max-new-tokens", 5000, "--json")
    record = json.loads(out)
    room = 640 - record["prompt_tokens"]
    assert code == 0
    assert err.splitlines()[1:] == [f"the answer is limited to {room} tokens: the engine holds 640"]
    assert record["new_tokens"] <= room


def test_a_prompt_too_long_says_what_to_rebuild_with(run: Run, engine: Path) -> None:
    code, out, err = run(engine, "--prompt", "z! " * 300)
    assert (code, out) == (1, "")
    assert err.splitlines()[1].startswith("trol-run: the prompt has ")
    assert "rebuild the engine with --max-seq " in err.splitlines()[1]


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
        ([], "nothing to ask: give --image FILE, or --prompt TEXT, or both"),
        (["--image", "-", "--image", "-"], "--image - is given more than once; stdin holds one picture"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens is 0, expected 1 or more"),
        (["--prompt", "x", "--max-new-tokens", "-1"], "--max-new-tokens is -1, expected 1 or more"),
        (
            ["--prompt", "x", "--max-new-tokens", "abc"],
            "argument --max-new-tokens: invalid int value: 'abc'; see: trol-run --help",
        ),
        (["--prompt", "x", "--max-new", "3"], "unrecognized arguments: --max-new 3; see: trol-run --help"),
        (["--promt", "x"], "unrecognized arguments: --promt x; see: trol-run --help"),
        (["--prompt"], "argument --prompt: expected one argument; see: trol-run --help"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(run: Run, engine: Path, options: list[str], message: str) -> None:
    assert run(engine, *options) == (2, "", f"trol-run: {message}\n")


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


def test_a_closed_stdin_is_a_wrong_call(run: Run, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    message = "--image - reads a picture from stdin, which is closed; pipe one in, or name a file"
    assert run(engine, "--image", "-") == (2, "", f"trol-run: {message}\n")


def test_as_many_tags_as_pictures(run: Run, engine: Path, image: Path) -> None:
    code, out, err = run(engine, "--image", image, "--prompt", "<image> and <image>")
    assert (code, out) == (2, "")
    assert err.splitlines()[1:] == [
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
    assert err.splitlines()[1].startswith("trol-run: the engine has no tokenizer; ")


def test_a_missing_onnxruntime_is_one_line(run: Run, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = run(engine, "--prompt", "x")
    assert (code, out) == (1, "")
    assert "pip install 'trol-export[cpu]'" in err.splitlines()[1]


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
    assert err.count("\n") == 1
    assert err.startswith(f"{engine} needs ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_answer_that_a_full_disk_cannot_take_is_one_line(engine: Path) -> None:
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-c", PROGRAM, str(engine), "--prompt", "hello"]
        process = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False)
    need, *message = process.stderr.decode().splitlines()
    assert process.returncode == 1
    assert need.startswith(f"{engine} needs ")
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
    assert process.stderr.count(b"\n") == 1


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
