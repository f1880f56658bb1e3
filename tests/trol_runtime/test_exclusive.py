"""Methods for one thread at a time: another thread is refused, the same one is not, and nothing leaves them locked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from trol_runtime.errors import UsageError
from trol_runtime.exclusive import OneThreadAtATime, exclusive

IN_USE = "the session is in use by another thread; give every thread a session of its own: new_session()"


class Guarded(OneThreadAtATime):
    @exclusive
    def run(self, what: Callable[[], Any] = lambda: "ran") -> Any:
        """Its docstring."""
        return what()

    @exclusive
    def other(self) -> str:
        return "other"


def in_another_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


@pytest.mark.parametrize("call", ["run", "other"])
def test_another_thread_is_refused_while_any_of_the_methods_runs(guarded: Guarded, call: str) -> None:
    with pytest.raises(UsageError) as refused:
        guarded.run(lambda: in_another_thread(getattr(guarded, call)))
    assert str(refused.value) == IN_USE


def test_another_thread_may_come_afterwards(guarded: Guarded) -> None:
    assert guarded.run() == in_another_thread(guarded.run) == "ran"


def test_other_objects_are_free(guarded: Guarded) -> None:
    assert guarded.run(lambda: in_another_thread(Guarded().other)) == "other"


def test_a_method_may_call_another_one(guarded: Guarded) -> None:
    assert guarded.run(guarded.other) == "other"
    assert in_another_thread(guarded.run) == "ran"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_method_that_fails_is_left(guarded: Guarded, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(error):
        guarded.run(fail)
    assert in_another_thread(guarded.run) == "ran"


class InterruptedLock:
    """A lock in whose `acquire` Ctrl-C comes once, when it is taken already."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._interrupts = 1

    def acquire(self, blocking: bool) -> bool:
        taken = self._lock.acquire(blocking=blocking)
        if self._interrupts:
            self._interrupts -= 1
            raise KeyboardInterrupt
        return taken

    def release(self) -> None:
        self._lock.release()


def test_ctrl_c_between_taking_the_lock_and_the_method_does_not_lock_its_thread_out(guarded: Guarded) -> None:
    guarded._lock = InterruptedLock(guarded._lock)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        guarded.run()
    assert guarded.run() == "ran"
    assert guarded.run(guarded.other) == "other"


def test_a_method_keeps_its_name_and_docstring() -> None:
    assert (Guarded.run.__name__, Guarded.run.__doc__) == ("run", "Its docstring.")
