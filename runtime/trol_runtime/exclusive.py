"""Methods for one thread at a time: a second thread is refused, where waiting would mix two conversations."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Any, TypeVar

from trol_runtime.errors import UsageError

CallT = TypeVar("CallT", bound=Callable[..., Any])


class OneThreadAtATime:
    """The base of classes with `exclusive` methods."""

    def __init__(self) -> None:
        # Reentrant: if Ctrl-C comes between taking the lock and the `try`, that thread can still go on.
        self._lock = RLock()


def exclusive(call: CallT) -> CallT:
    """Raise UsageError while another thread is in an exclusive method of the same object."""

    @wraps(call)
    def guarded(self: OneThreadAtATime, *args: Any, **kwargs: Any) -> Any:
        if not self._lock.acquire(blocking=False):
            raise UsageError(
                "the session is in use by another thread; give every thread a session of its own: new_session()"
            )
        try:
            return call(self, *args, **kwargs)
        finally:
            self._lock.release()

    return guarded  # type: ignore[return-value]
