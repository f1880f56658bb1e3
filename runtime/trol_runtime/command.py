"""The shell around every command: user errors become one line and an exit code, bugs keep their traceback.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C, SIGTERM or SIGHUP), 141 the reader of stdout went
away.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from trol_runtime.errors import TrolError

Main = Callable[[Sequence[str] | None], int]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def run_script(name: str, main: Main) -> NoReturn:
    """The console entry point of a command: run it on the process's arguments and exit."""
    _replace_closed_streams()
    _interrupt_when_killed()
    sys.exit(run_command(name, main))


def run_command(name: str, main: Main, argv: Sequence[str] | None = None) -> int:
    """Run `main(argv)` and return the exit code; a TrolError is printed to stderr as `name: message`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the terminal's encoding lacks is shown as "?" rather than losing the rest of the answer.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            with _warnings_in_one_line(name):
                return main(argv)
        finally:
            sys.stdout.flush()  # here, where a failure is still one line; --help leaves by SystemExit
    except TrolError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()  # the reader (`head`, a closed pager) is gone: leave quietly
        return 141
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        # Whichever file it was: a full disk is no bug.
        print(
            f"{name}: no room left for the output ({error.strerror}); free some, or write it to another disk",
            file=sys.stderr,
        )
        _drop_stdout()
        return 1


@contextmanager
def _warnings_in_one_line(name: str) -> Iterator[None]:
    """What a user should know goes to stderr as `name: message`, every time; other warnings go their own way."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{name}: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _replace_closed_streams() -> None:
    """Let what is printed to a stream that the shell closed (`>&-`, `2>&-`) go nowhere.

    Python's None in its place has no `flush`, and `print(..., file=None)` would send stderr's messages to stdout.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w", errors="replace"))  # noqa: SIM115  open to the end


def _interrupt_when_killed() -> None:
    """Make a polite kill and a closed terminal end like Ctrl-C: what was half-written is removed on the way out."""
    # Not by way of SIGINT's handler of now: a shell's background job starts with SIGINT ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Windows has no SIGHUP; under nohup it is ignored and stays so.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def _drop_stdout() -> None:
    """Keep the interpreter from flushing, as it exits, what stdout has just refused."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
