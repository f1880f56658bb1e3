"""What a command needs beyond the runtime, asked for before it begins to work."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.util import find_spec

from trol_runtime.errors import MissingExtraError
from trol_runtime.target_support import require_exporting_python


def require_installed(doing: str, modules: Iterable[str], extras: str) -> None:
    """Raise MissingExtraError, with the pip command, unless every module can be imported.

    doing: what needs them, at the beginning of the message. extras: of trol-export, as pip takes them: "export,cpu"
    Raises TrolError first where no pip command would help: the extra `export` is for newer Pythons than the runtime.
    """
    if "export" in extras.split(","):
        require_exporting_python(doing, platform.python_version())
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{doing} needs {', '.join(missing)}, not installed here; install with: pip install 'trol-export[{extras}]'"
        )
