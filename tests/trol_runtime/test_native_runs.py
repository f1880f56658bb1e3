"""The end of a program waits for the runs of other threads, lets no further one begin, and is not held up by a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
    import os, sys, threading, time
    from trol_runtime.native_runs import native_run
    def daemon(target):
        threading.Thread(target=target, daemon=True).start()
"""


def lines_of(script: str) -> list[str]:
    program = textwrap.dedent(PREAMBLE) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_end_waits_for_a_run_of_another_thread_and_no_further_one_begins() -> None:
    script = """
        running = threading.Event()
        def work():
            with native_run():
                running.set()
                time.sleep(0.3)
                print("run", flush=True)
            with native_run():
                print("never", flush=True)
        daemon(work)
        running.wait()
        print("end", flush=True)
    """
    assert lines_of(script) == ["end", "run"]


def test_a_run_within_another_is_part_of_it() -> None:
    """It would wait for the end, which waits for it."""
    script = """
        running = threading.Event()
        def work():
            with native_run():
                running.set()
                time.sleep(0.3)
                with native_run():
                    print("within", flush=True)
                print("run", flush=True)
        daemon(work)
        running.wait()
        print("end", flush=True)
    """
    assert lines_of(script) == ["end", "within", "run"]


def test_a_run_that_fails_is_not_waited_for() -> None:
    script = """
        failed = threading.Event()
        def work():
            try:
                with native_run():
                    raise ValueError
            except ValueError:
                failed.set()
        daemon(work)
        failed.wait()
        print("end", flush=True)
    """
    assert lines_of(script) == ["end"]


def test_the_main_thread_may_run_while_the_program_ends() -> None:
    """As what a user registered with atexit does."""
    script = """
        import atexit
        from trol_runtime import native_runs
        def last():
            with native_run():
                print("last", flush=True)
        atexit.unregister(native_runs._runs.end)
        atexit.register(last)
        atexit.register(native_runs._runs.end)  # called before it: the last one first
    """
    assert lines_of(script) == ["last"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_wait_for_the_runs_of_its_parent() -> None:
    script = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point here
        running, go_on = threading.Event(), threading.Event()
        def work():
            with native_run():
                running.set()
                go_on.wait()
        daemon(work)
        running.wait()
        child = os.fork()
        if child == 0:
            sys.exit()
        print(os.waitpid(child, 0)[1], flush=True)
        go_on.set()
    """
    assert lines_of(script) == ["0"]
