"""trol-run --chat: questions typed line by line, answers streamed, until /quit or the end of the input.

Answers go to stdout, everything else to stderr. Ctrl-C stops an answer, or clears the line that is being typed.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from trol_runtime.answer_report import kept_memory, summary
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.picture import load_picture

if TYPE_CHECKING:
    from PIL import Image

    from trol_runtime.engine import TroL
    from trol_runtime.generation_config import GenerationConfig

HELP = """\
/image PATH  add a picture to the next question; without PATH: take back those added
/history     show the turns so far
/drop [N]    forget the oldest N turns (default: 1)
/clear       forget all turns
/quit        leave; so does Ctrl-D
Ctrl-C stops an answer. Any other line is a question; put a space in front of one that begins with /."""

PROMPT = "> "


class CtrlC(KeyboardInterrupt):
    """Ctrl-C itself; a kill and a closed terminal raise KeyboardInterrupt, which ends the command."""


class CtrlCHandler:
    """Ctrl-C raises CtrlC where there is something to stop, once each time, and does nothing anywhere else.

    So it does not matter how often the key is pressed: what is said about the first time is not stopped by the second.
    """

    def __init__(self) -> None:
        self._raises = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Ctrl-C is ours inside; where it is ignored, as in a shell's background job, it stays so."""
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """It raises CtrlC inside, or on the way out."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _pressed(self, *_: object) -> None:
        if self._raises:
            self._raises = False
            raise CtrlC


class ChatCommand:
    """A chat as the one who types sees it: lines are questions or commands, a problem is one line.

    pictures: go with the first question
    exif: turn pictures upright that are added
    is_open: until /quit
    """

    def __init__(
        self, model: TroL, config: GenerationConfig, pictures: Sequence[Image.Image], *, keep_prefix: bool, exif: bool
    ) -> None:
        self.is_open = True
        self._model = model
        self._chat = model.chat(keep_prefix=keep_prefix, config=config)
        self._pictures = list(pictures)
        self._exif = exif
        self._kept_bytes = 0  # as last shown
        self._ctrl_c = CtrlCHandler()

    def run(self, first_question: str | None) -> None:
        """Ask `first_question`, if there is one, then what is typed, until /quit or the end of the input."""
        with self._ctrl_c.installed():
            if first_question is not None:
                self.take(f" {first_question}")  # no command, whatever it begins with
            read_line = _line_reader()
            while self.is_open:
                try:
                    with self._ctrl_c.raised():
                        line = read_line()
                except CtrlC:
                    _say("\n/quit or Ctrl-D leaves")
                except EOFError:
                    if sys.stdin.isatty():
                        _say("")  # what a shell prompts with next goes on a line of its own
                    return
                else:
                    self.take(line)

    def take(self, line: str) -> None:
        """One line that was typed."""
        try:
            if line.startswith("/"):
                self._obey(line)
            elif line.strip():
                self._ask(line.strip())
        except TrolError as error:
            _say(f"trol-run: {error}")
        self._show_memory()

    def _ask(self, question: str) -> None:
        turns = len(self._chat.turns)
        try:
            with contextlib.suppress(CtrlC), self._ctrl_c.raised():
                for piece in self._chat.ask(question, self._pictures):
                    print(piece, end="", flush=True)
        finally:
            added = len(self._chat.turns) > turns
            if added:
                self._pictures = []
                print(flush=True)
        if not added:
            _say("\nstopped; nothing was added to the chat")
            return
        answer = self._chat.turns[-1].answer
        stopped = "stopped; " if answer.finish_reason is None else ""
        answer.stop()
        _say(stopped + summary(answer, self._model))

    def _show_memory(self) -> None:
        """What the kept prefix takes, whenever that has changed."""
        if self._chat.session.prefix_bytes != self._kept_bytes:
            self._kept_bytes = self._chat.session.prefix_bytes
            _say(kept_memory(self._chat.session))

    def _obey(self, line: str) -> None:
        name, _, argument = line.strip().partition(" ")
        match name, argument.strip():
            case "/image", path:
                self._add_picture(path)
            case "/history", "":
                self._show_history()
            case "/drop", count:
                self._drop(count)
            case "/clear", "":
                self._clear()
            case "/help", "":
                _say(HELP)
            case "/quit", "":
                self.is_open = False
            case _:
                raise UsageError(f"{line.strip()!r} is no command: see /help, or put a space in front to ask it")

    def _add_picture(self, path: str) -> None:
        if path:
            self._pictures.append(load_picture(os.path.expanduser(path), self._exif))
        else:
            self._pictures.clear()
        _say(f"pictures for the next question: {len(self._pictures)}")

    def _show_history(self) -> None:
        for number, turn in enumerate(self._chat.turns, 1):
            pictures = f" (pictures: {len(turn.crops)})" if turn.crops else ""
            _say(f"{number}. {turn.question}{pictures}\n   {turn.answer.text}")
        if not self._chat.turns:
            _say("no turns yet")

    def _drop(self, count: str) -> None:
        try:
            turns = int(count or 1)
        except ValueError:
            raise UsageError(f"/drop {count!r}: expected how many turns, as in /drop 2") from None
        self._chat.drop(turns)
        _say(f"turns left: {len(self._chat.turns)}")

    def _clear(self) -> None:
        if self._chat.turns:
            self._chat.drop(len(self._chat.turns))
        self._pictures.clear()
        _say("turns left: 0")


def _line_reader() -> Callable[[], str]:
    """Reads one line of stdin without its end, after a prompt where a person types; raises EOFError."""
    stdin = sys.stdin
    if isinstance(stdin, io.TextIOWrapper):
        # Bytes that are no text in this encoding are refused with their question, not with the chat.
        stdin.reconfigure(errors="surrogateescape")
    if stdin.isatty():
        _say("/help lists the commands")
        if sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  lets `input` edit lines and recall them

            return _typed_line
    return lambda: _read_line(stdin)


def _typed_line() -> str:
    try:
        return input(PROMPT)
    except SystemError as error:
        # Pressed again before readline had passed on the first time, which the interpreter takes for a bug of ours.
        if isinstance(error.__cause__, CtrlC):
            raise error.__cause__ from None
        raise


def _read_line(stdin: TextIO) -> str:
    if stdin.isatty():  # and stdout is not: the prompt is no part of the answers
        print(PROMPT, end="", file=sys.stderr, flush=True)
    line = stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
