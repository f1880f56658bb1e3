"""The interactive chat: what each line does, what Ctrl-C and Ctrl-D do, with a pipe and at a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from small_prompts import picture_file
from trol_runtime import TroL
from trol_runtime import chat_command as module
from trol_runtime.answer_report import summary
from trol_runtime.chat import Chat
from trol_runtime.chat_command import HELP, ChatCommand, CtrlC, _typed_line
from trol_runtime.cpu_backend import CpuBackend
from trol_runtime.generation_config import GenerationConfig

ANSWER = GenerationConfig(max_new_tokens=8)
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture(scope="module")
def model(micro_engine: Callable[..., Path]) -> TroL:
    return TroL.load(micro_engine("phi3"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return picture_file(tmp_path)


def chat_command(model: TroL, config: GenerationConfig = ANSWER, keep_prefix: bool = True) -> ChatCommand:
    return ChatCommand(model, config, [], keep_prefix=keep_prefix, exif=False)


Typed = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def typed(model: TroL, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Lines of stdout and stderr after some lines were typed."""

    def lines_of(*lines: str, config: GenerationConfig = ANSWER) -> tuple[list[str], list[str]]:
        command = chat_command(model, config)
        for line in lines:
            command.take(line)
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err.splitlines()

    return lines_of


def answers(model: TroL, *turns: tuple[str, list[Path]]) -> list[str]:
    """What the Python interface answers to the same turns."""
    chat = model.chat(config=ANSWER)
    return ["".join(chat.ask(question, pictures)) for question, pictures in turns]


# --- lines


def test_a_line_is_a_question_and_the_next_one_a_further_turn(typed: Typed, model: TroL) -> None:
    assert typed("hello", "and now?")[0] == answers(model, ("hello", []), ("and now?", []))


def test_pictures_are_added_to_the_next_question_alone(typed: Typed, model: TroL, image: Path, tmp_path: Path) -> None:
    other = picture_file(tmp_path, "my other one.png", 60, 30)
    out, err = typed(f"/image {image}", f"/image   {other} ", "<image> or <image>?", "why?")
    assert out == answers(model, ("<image> or <image>?", [image, other]), ("why?", []))
    assert err[:2] == ["pictures for the next question: 1", "pictures for the next question: 2"]


def test_a_question_that_was_refused_leaves_its_pictures_for_the_next(typed: Typed, model: TroL, image: Path) -> None:
    out, err = typed(f"/image {image}", "<image> <image>?", "what?")
    assert out == answers(model, ("what?", [image]))
    assert err[1].startswith("trol-run: the prompt holds 2 <image> for 1 picture(s): ")


def test_image_without_a_path_takes_the_pictures_back(typed: Typed, model: TroL, image: Path) -> None:
    out, err = typed(f"/image {image}", "/image", "hello")
    assert out == answers(model, ("hello", []))
    assert err[1] == "pictures for the next question: 0"


def test_image_knows_the_home_folder(typed: Typed, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(image.parent))
    assert typed(f"/image ~/{image.name}")[1] == ["pictures for the next question: 1"]


def test_exif_turns_added_pictures_upright(model: TroL, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("trol_runtime.chat_command.load_picture", lambda path, exif: seen.append((path, exif)))
    ChatCommand(model, ANSWER, [], keep_prefix=True, exif=True).take(f"/image {image}")
    assert seen == [(str(image), True)]


def test_history_shows_the_turns(typed: Typed, model: TroL, image: Path) -> None:
    first, second = answers(model, ("hello", []), ("what?", [image]))
    err = typed("/history", "hello", f"/image {image}", "what?", "/history")[1]
    assert err[0] == "no turns yet"
    assert err[-4:] == ["1. hello", f"   {first}", "2. what? (pictures: 1)", f"   {second}"]


def test_drop_forgets_the_oldest_turns(typed: Typed, model: TroL) -> None:
    chat = model.chat(config=ANSWER)
    for question in ("a", "b", "c"):
        "".join(chat.ask(question))
    chat.drop(2)
    out, err = typed("a", "b", "c", "/drop", "/drop 1", "d", "/history")
    assert out[-1] == "".join(chat.ask("d"))
    assert [line for line in err if line.startswith("turns left")] == ["turns left: 2", "turns left: 1"]
    assert [line for line in err if re.match(r"\d\. ", line)] == ["1. c", "2. d"]


def test_clear_forgets_all_turns_and_pictures(typed: Typed, model: TroL, image: Path) -> None:
    out, err = typed("a", "b", f"/image {image}", "/clear", "hello", "/clear", "/clear")
    assert out[-1] == answers(model, ("hello", []))[0]
    assert [line for line in err if line.startswith("turns left")] == ["turns left: 0"] * 3


def test_help_names_every_command(typed: Typed) -> None:
    assert typed("/help") == ([], HELP.splitlines())
    assert re.findall(r"^/\w+", HELP, re.MULTILINE) == ["/image", "/history", "/drop", "/clear", "/quit"]


def test_quit_leaves(model: TroL) -> None:
    command = chat_command(model)
    assert command.is_open
    command.take("/quit")
    assert not command.is_open


@pytest.mark.parametrize("line", ["", " ", "\t"])
def test_an_empty_line_asks_nothing(typed: Typed, line: str) -> None:
    assert typed(line) == ([], [])


def test_a_space_in_front_makes_a_command_a_question(typed: Typed, model: TroL) -> None:
    assert typed(" /quit")[0] == answers(model, ("/quit", []))


NO_COMMAND = "is no command: see /help, or put a space in front to ask it"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/", f"'/' {NO_COMMAND}"),
        ("/etc/passwd", f"'/etc/passwd' {NO_COMMAND}"),
        ("/Quit", f"'/Quit' {NO_COMMAND}"),
        ("/history 3", f"'/history 3' {NO_COMMAND}"),
        ("/quit now", f"'/quit now' {NO_COMMAND}"),
        ("/drop", "the chat has no turns to drop; ask something first"),
        ("/drop 0", "the chat has no turns to drop; ask something first"),
        ("/drop -1", "the chat has no turns to drop; ask something first"),
        ("/drop all", "/drop 'all': expected how many turns, as in /drop 2"),
        ("/drop 2 3", "/drop '2 3': expected how many turns, as in /drop 2"),
        (f"/drop {'9' * 5000}", f"/drop '{'9' * 5000}': expected how many turns, as in /drop 2"),
        ("/image no.png", "picture 'no.png': No such file or directory; give the path of an image file"),
        ("/image /", "picture '/': Is a directory; give the path of an image file"),
        ("/image a\0b", "picture 'a\\x00b': embedded null byte; give the path of an image file"),
        ("half \udcff", "character 6 of the prompt is '\\udcff', no Unicode text: pass it as UTF-8"),
    ],
)
def test_a_wrong_line_is_one_line_and_the_chat_goes_on(typed: Typed, model: TroL, line: str, message: str) -> None:
    out, err = typed(line, "hello")
    assert err[0] == f"trol-run: {message}"
    assert out == answers(model, ("hello", []))


def test_a_chat_past_the_engines_length_says_which_turns_to_drop(typed: Typed) -> None:
    long = "z! " * 70
    err = typed(long, long, long, long, "/drop 1", long)[1]
    told = [line.partition(" ")[0] for line in err if not line.startswith("the kept prefix")]
    assert told == ["prompt", "prompt", "prompt", "trol-run:", "turns", "prompt"]
    refusal = next(line for line in err if line.startswith("trol-run: "))
    assert refusal.endswith("; drop the oldest turn: chat.drop(1), or /drop 1 in trol-run")


def test_the_memory_of_the_kept_prefix_is_said_whenever_it_has_changed(typed: Typed) -> None:
    long = "z! " * 70
    err = typed("hello", "why?", long, "/clear", "/clear")[1]
    assert [line.partition(" takes ")[0].partition(" ")[0] for line in err] == [
        *("prompt", "the", "prompt", "prompt", "the", "turns", "no", "turns")
    ]
    before, after = (re.search(r"takes (\d+) KiB", line) for line in (err[1], err[4]))
    assert before
    assert after
    assert int(before[1]) < int(after[1])
    assert err[6] == "no prefix is kept any more"


def test_every_answer_has_its_times_and_the_kept_prefix_is_named_once(typed: Typed, model: TroL) -> None:
    chat = model.chat(config=ANSWER)
    first = chat.ask("hello")
    "".join(first)
    second = chat.ask("and now?")
    err = typed("hello", "and now?")[1]
    assert err[0].startswith(f"prompt {first.prompt_tokens} tokens (0 of pictures, 0 reused) in ")
    assert re.fullmatch(r"the kept prefix takes \d+ KiB of memory; --no-keep-prefix does without", err[1])
    assert err[2].startswith(f"prompt {second.prompt_tokens} tokens (0 of pictures, {first.prompt_tokens} reused) in ")


def test_without_a_kept_prefix_nothing_is_reused_and_nothing_said(
    model: TroL, capsys: pytest.CaptureFixture[str]
) -> None:
    command = chat_command(model, keep_prefix=False)
    command.take("hello")
    command.take("and now?")
    err = capsys.readouterr().err
    assert err.count(", 0 reused)") == 2
    assert "kept prefix" not in err


# --- Ctrl-C, at a known moment


@contextmanager
def ctrl_c_in(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> Iterator[None]:
    """Press Ctrl-C during the given call, counted from 1, of a method of the backend."""
    original, calls = getattr(CpuBackend, method), []

    def interrupted(self: CpuBackend, *arguments: Any) -> Any:
        calls.append(method)
        result = original(self, *arguments)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(CpuBackend, method, interrupted)
        yield


def talk(model: TroL, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A whole chat with stdin as a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    chat_command(model).run(None)


def stopped(chat: Chat, question: str, tokens: int) -> str:
    """An answer that was stopped when it had so many tokens."""
    answer = chat.ask(question)
    for _ in answer:
        if len(answer.token_ids) == tokens:
            answer.stop()
    return answer.text


def test_ctrl_c_stops_the_answer_and_what_came_of_it_stays_in_the_chat(
    model: TroL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ctrl_c_in(monkeypatch, "decode", 4):
        talk(model, monkeypatch, "hello", "and now?", "/history")
    out, err = (text.splitlines() for text in capsys.readouterr())
    chat = model.chat(config=ANSWER)
    partial = stopped(chat, "hello", tokens=4)
    assert out == [partial, "".join(chat.ask("and now?"))]
    assert err[0].startswith("stopped; prompt 135 tokens ")
    assert "answer 4 tokens, " in err[0]
    assert err[-4:-2] == ["1. hello", f"   {partial}"]


def test_ctrl_c_before_the_answer_leaves_the_chat_as_it_was(
    model: TroL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], image: Path
) -> None:
    with ctrl_c_in(monkeypatch, "extend", 2):
        talk(model, monkeypatch, "hello", f"/image {image}", "what?", "/history", "why?")
    out, err = (text.splitlines() for text in capsys.readouterr())
    assert out == answers(model, ("hello", []), ("why?", [image]))
    assert "stopped; nothing was added to the chat" in err
    assert [line for line in err if re.match(r"\d\. ", line)] == ["1. hello"]


def test_ctrl_c_between_a_question_and_its_answer_is_told_as_what_it_is(
    model: TroL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = Chat.ask

    def interrupted(self: Chat, *arguments: Any) -> Any:
        ask(self, *arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Chat, "ask", interrupted)
    talk(model, monkeypatch, "hello", "/history")
    out, err = capsys.readouterr()
    assert out == "\n"
    assert err.startswith("stopped; prompt 135 tokens ")
    assert ", answer 0 tokens\n" in err
    assert "1. hello\n" in err


def test_ctrl_c_while_the_times_are_said_changes_nothing(
    model: TroL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*arguments: Any) -> str:
        signal.raise_signal(signal.SIGINT)
        return summary(*arguments)

    monkeypatch.setattr(module, "summary", pressed)
    talk(model, monkeypatch, "hello", "and now?")
    out, err = capsys.readouterr()
    assert out.splitlines() == answers(model, ("hello", []), ("and now?", []))
    assert err.startswith("prompt 135 tokens ")
    assert "stopped" not in err


def test_ctrl_c_as_often_as_one_likes_does_not_end_the_chat(
    model: TroL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Again with everything that the first one makes it say."""

    def pressed(text: str) -> None:
        signal.raise_signal(signal.SIGINT)
        print(text, file=sys.stderr)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(module, "_say", pressed)
    with ctrl_c_in(monkeypatch, "decode", 4):
        monkeypatch.setattr(sys, "stdin", stdin_with("hello\n", CTRL_C, CTRL_C, "and now?\n"))
        chat_command(model).run(None)
    out, err = (text.splitlines() for text in capsys.readouterr())
    chat = model.chat(config=ANSWER)
    assert out == [stopped(chat, "hello", tokens=4), "".join(chat.ask("and now?"))]
    assert err[0].startswith("stopped; prompt 135 tokens ")
    assert err.count("/quit or Ctrl-D leaves") == 2


def stdin_with(*lines: str) -> Any:
    """A stdin with these lines; CTRL_C is pressed while one is waited for."""
    waiting = iter(lines)

    def readline() -> str:
        line = next(waiting, "")
        if line == CTRL_C:
            signal.raise_signal(signal.SIGINT)
        return line

    return SimpleNamespace(readline=readline, isatty=lambda: False)


def test_ctrl_c_where_a_line_is_read_says_how_to_leave(
    model: TroL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin_with(CTRL_C, "hello\n"))
    chat_command(model).run(None)
    out, err = capsys.readouterr()
    assert out.splitlines() == answers(model, ("hello", []))
    assert err.startswith("\n/quit or Ctrl-D leaves\n")


def test_ctrl_c_is_as_before_when_the_chat_is_over(model: TroL, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    talk(model, monkeypatch, "/quit")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_chat_that_is_killed_ends(model: TroL, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SIGTERM and SIGHUP do, which the command turns into KeyboardInterrupt."""

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(CpuBackend, "decode", killed)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        talk(model, monkeypatch, "hello", "never asked")
    assert not isinstance(interrupt.value, CtrlC)


# --- as a process

PROGRAM = "from trol_runtime.run_command_line import script; script()"
# The terminal becomes the one whose Ctrl-C reaches the process, as a shell sees to it. Steps take as long as those of a
# larger model, so that there is time to press a key.
SLOW_PROGRAM = f"""\
import fcntl, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from trol_runtime.cpu_backend import CpuBackend
decode = CpuBackend.decode
CpuBackend.decode = lambda self, *arguments: time.sleep(0.05) or decode(self, *arguments)
{PROGRAM}"""


@pytest.fixture
def engine(micro_engine: Callable[..., Path]) -> Path:
    return micro_engine("phi3")


def test_a_pipe_has_no_prompts_in_its_output(engine: Path, model: TroL) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(engine), "--chat", "--max-new-tokens", "8"]
    process = subprocess.run(argv, input=b"hello\n/foo\nand now?", capture_output=True, check=False)
    expected = answers(model, ("hello", []), ("and now?", []))
    assert (process.returncode, process.stdout.decode().splitlines()) == (0, expected)
    assert b"> " not in process.stderr


def test_bytes_that_are_no_text_are_refused_with_their_question_alone(engine: Path) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(engine), "--chat", "--max-new-tokens", "3"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    process = subprocess.run(argv, input=b"a\xff\nhello\n", capture_output=True, check=False, env=environment)
    assert (process.returncode, process.stdout.count(b"\n")) == (0, 1)
    assert b"trol-run: character 2 of the prompt is '\\udcff', no Unicode text: pass it as UTF-8\n" in process.stderr


class Terminal:
    """A command that runs at a terminal of its own."""

    def __init__(self, program: str, *arguments: str | Path) -> None:
        self._end, terminal = pty.openpty()
        self._shown = ""  # and not yet waited for
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "dumb", "INPUTRC": os.devnull},
            start_new_session=True,
        )
        os.close(terminal)

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def wait_for(self, pattern: str, keys: str = "") -> re.Match[str]:
        """Read on until `pattern` is shown, behind what was waited for before; type `keys` once a second meanwhile."""
        seconds = 0
        while not (found := re.search(pattern, self._shown)):
            if select.select([self._end], [], [], 1)[0]:
                data = b""
                with suppress(OSError):  # EIO: the other end is closed
                    data = os.read(self._end, 4096)
                assert data, self._shown
                self._shown += data.decode(errors="replace")
            else:
                assert seconds < 60, self._shown
                seconds += 1
                self.type(keys)
        self._shown = self._shown[found.end() :]
        return found

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


def test_at_a_terminal_ctrl_c_stops_an_answer_or_clears_a_line_and_ctrl_d_leaves(engine: Path) -> None:
    with Terminal(SLOW_PROGRAM, engine, "--chat", "--max-new-tokens", "500") as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("> ")
        terminal.type("half a line")
        terminal.wait_for("half a line")
        # Again, where it comes while readline is busy with the line: only the next key would be noticed.
        terminal.wait_for("/quit or Ctrl-D leaves\r\n> ", keys=CTRL_C)
        terminal.type("hello\n")
        terminal.wait_for("hello\r\n.{6}")  # the answer has begun
        terminal.type(CTRL_C)
        stopped = terminal.wait_for(r"stopped; prompt 135 tokens .* answer (\d+) tokens, ")
        assert 1 < int(stopped[1]) < 500
        terminal.wait_for("> ")
        terminal.type("/history\n")
        terminal.wait_for("1. hello\r\n   .{6}.*\r\n> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(timeout=60) == 0


def test_ctrl_c_many_times_within_milliseconds_stops_one_answer(engine: Path) -> None:
    with Terminal(SLOW_PROGRAM, engine, "--chat", "--prompt", "hello", "--max-new-tokens", "500") as terminal:
        terminal.wait_for("loaded in .*\n.{6}")
        for _ in range(100):
            terminal.process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        terminal.wait_for("stopped; prompt 135 tokens ")
        terminal.wait_for("> ")
        terminal.type("/history\n")
        terminal.wait_for("1. hello\r\n   .{6}.*\r\n> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(timeout=60) == 0


def test_what_the_interpreter_makes_of_a_burst_of_ctrl_c_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(_: str) -> NoReturn:
        raise SystemError("a handler returned a result with an exception set") from CtrlC()

    monkeypatch.setattr("builtins.input", burst)
    with pytest.raises(CtrlC):
        _typed_line()


def test_any_other_error_of_the_interpreter_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> NoReturn:
        raise SystemError("something else")

    monkeypatch.setattr("builtins.input", fail)
    with pytest.raises(SystemError, match="something else"):
        _typed_line()


def test_a_kill_ends_a_chat_in_the_middle_of_an_answer(engine: Path) -> None:
    with Terminal(SLOW_PROGRAM, engine, "--chat", "--prompt", "hello", "--max-new-tokens", "500") as terminal:
        terminal.wait_for("loaded in .*\n.{6}")
        terminal.process.terminate()
        terminal.wait_for("trol-run: interrupted")
        assert terminal.process.wait(timeout=60) == 130
