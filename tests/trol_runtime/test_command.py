"""The shell around every command: one line and an exit code for what a user can mend, a traceback for a bug."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from trol_runtime import errors
from trol_runtime.command import run_command
from trol_runtime.command_parser import CommandParser

ERRORS = [
    (errors.TrolError, 1),
    (errors.UsageError, 2),
    (errors.EngineFileError, 1),
    (errors.CheckpointError, 1),
    (errors.PictureError, 1),
    (errors.LimitError, 1),
    (errors.MissingExtraError, 1),
    (errors.NumericError, 1),
]


def failing(error: BaseException) -> int:
    def main(argv: Sequence[str] | None) -> int:
        raise error

    return run_command("trol-run", main, [])


@pytest.mark.parametrize(("kind", "code"), ERRORS)
def test_a_users_error_is_its_message_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], kind: type[errors.TrolError], code: int
) -> None:
    assert failing(kind("found, expected, do this")) == code
    assert capsys.readouterr() == ("", "trol-run: found, expected, do this\n")


def test_every_kind_of_error_is_listed_here() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert kinds == {kind for kind, _ in ERRORS}


def test_the_exit_code_of_the_command_is_passed_on() -> None:
    assert run_command("trol-run", lambda _: 0, []) == 0
    assert run_command("trol-run", lambda _: 1, []) == 1


def test_ctrl_c_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "trol-run: interrupted\n")


def script(expression: str, shell: str) -> subprocess.CompletedProcess[bytes]:
    """A command that evaluates `expression` and is done, started by a line of `sh` as "$@"."""
    program = (
        "import signal, sys; from trol_runtime.command import run_script\n"
        f"run_script('trol-run', lambda _: {expression} or 0)"
    )
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("interrupts", ["", "trap '' INT; "], ids=["at a terminal", "as a background job"])
@pytest.mark.parametrize("kill", ["SIGTERM", "SIGHUP"])
def test_a_polite_kill_and_a_closed_terminal_end_like_ctrl_c(interrupts: str, kill: str) -> None:
    """A shell without job control starts its background jobs with SIGINT ignored."""
    process = script(f"signal.raise_signal(signal.{kill})", f'{interrupts}exec "$@"')
    assert (process.returncode, process.stderr) == (130, b"trol-run: interrupted\n")


def test_under_nohup_a_closed_terminal_changes_nothing() -> None:
    process = script("signal.raise_signal(signal.SIGHUP)", "trap '' HUP; exec \"$@\"")
    assert (process.returncode, process.stderr) == (0, b"")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def test_a_closed_stdout_is_quiet_and_exit_code_141() -> None:
    program = (
        "import sys; from trol_runtime.command import run_command\nsys.exit(run_command('x', lambda _: print(1) or 0))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_without_a_stdout_the_command_does_its_work() -> None:
    process = script("print('answer') or print('note', file=sys.stderr)", '"$@" >&-')
    assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"note\n")


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-"])
def test_without_a_stderr_messages_go_nowhere(streams: str) -> None:
    process = script("print('note', file=sys.stderr)", f'"$@" {streams}')
    assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"")
    process = script("open('no such file')", f'"$@" {streams}')
    assert (process.returncode, process.stdout, process.stderr) == (1, b"", b"")
    process = script("signal.raise_signal(signal.SIGTERM)", f'"$@" {streams}')
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


needs_a_full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@needs_a_full_device
@pytest.mark.parametrize(
    "action", ["print('answer')", "print('answer', flush=True)", "print('answer') or sys.exit(0)"], ids=str
)
@pytest.mark.parametrize("unbuffered", ["", "PYTHONUNBUFFERED=1 "], ids=["buffered", "unbuffered"])
def test_a_full_disk_behind_stdout_is_one_line_and_exit_code_1(action: str, unbuffered: str) -> None:
    process = script(action, f'{unbuffered}"$@" > /dev/full')
    assert (process.returncode, process.stderr) == (
        1,
        b"trol-run: no room left for the output (No space left on device); free some, or write it to another disk\n",
    )


def test_any_other_refusal_of_the_system_is_a_bug() -> None:
    with pytest.raises(PermissionError):
        failing(PermissionError(errno.EACCES, "not for you"))


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"caf?\n"), ("utf-8", "café\n".encode())])
def test_what_the_terminal_cannot_show_becomes_a_question_mark(encoding: str, shown: bytes) -> None:
    program = "from trol_runtime.command import run_command; run_command('x', lambda _: print('caf\\xe9') or 0)"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert (process.stdout, process.stderr) == (shown, b"")


def test_stdout_may_be_no_terminal_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    assert run_command("x", lambda _: print("text") or 0) == 0
    assert output.getvalue() == "text\n"


# --- the parser


def parser() -> CommandParser:
    made = CommandParser("trol-run", [("engine.plan", "runs it"), ("engine.plan --loud", "100 % loud")])
    made.add_argument("engine")
    made.add_argument("--loud", action="store_true")
    return made


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: engine; see: trol-run --help"),
        (["a", "b"], "unrecognized arguments: b; see: trol-run --help"),
        (["a", "--lou"], "unrecognized arguments: --lou; see: trol-run --help"),
    ],
)
def test_a_wrong_call_is_a_usage_error(argv: list[str], message: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        parser().parse_args(argv)
    assert str(caught.value) == message


def test_help_opens_with_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parser().parse_args(["--help"])
    assert capsys.readouterr().out.splitlines()[:2] == [
        "usage: trol-run engine.plan         runs it",
        "       trol-run engine.plan --loud  100 % loud",
    ]
