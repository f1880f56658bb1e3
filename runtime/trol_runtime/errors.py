"""What can go wrong, as one small tree; every message says what was found, what was expected and what to do.

    TrolError                a user's problem: one line, exit code 1
    ├── UsageError           the call itself is wrong: exit code 2
    ├── EngineFileError      engine.plan is missing, damaged or of another format version
    ├── CheckpointError      the checkpoint does not hold what TroL needs
    ├── PictureError         a picture cannot be read or is absurd
    ├── LimitError           prompt, batch or memory beyond what the engine or the machine can hold
    ├── MissingExtraError    an optional dependency is not installed
    └── NumericError         NaN or infinity where numbers must be

Any other exception is a bug and keeps its traceback.
"""


class TrolError(Exception):
    """A problem the user can solve; `str(error)` is one line: found, expected, what to do."""

    exit_code = 1


class UsageError(TrolError, ValueError):
    """The call is wrong in itself, whatever the files hold."""

    exit_code = 2


class EngineFileError(TrolError):
    """engine.plan is missing, damaged, truncated or of a format this version cannot read."""


class CheckpointError(TrolError):
    """The checkpoint is missing, damaged, or deviates from what its config promises."""


class PictureError(TrolError):
    """A picture cannot be decoded or is too large to be one."""


class LimitError(TrolError):
    """More tokens, rows or bytes than the engine was built for or the machine has."""


class MissingExtraError(TrolError, ImportError):
    """An optional dependency is not installed; the message holds the pip command."""


class NumericError(TrolError, ArithmeticError):
    """NaN or infinity in weights or logits; the tensor is named."""
