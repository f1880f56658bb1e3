"""TensorRT's messages: nothing is printed, the last error is kept for whoever reports it.

Its own logger prints to stdout, which is for answers.
"""

from __future__ import annotations

from typing import Any

from trol_runtime.one_line import one_line


def quiet_log(trt: Any) -> Any:
    """A logger for builders and runtimes of a package; `last_error` is the last one's line."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last_error = one_line(message, 200)

    return Log()
