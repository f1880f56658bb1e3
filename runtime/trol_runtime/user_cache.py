"""The user's cache directory, and in it the secret key by which plans are known to be this user's own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from trol_runtime.atomic_file import write_whole
from trol_runtime.errors import TrolError

_KEY_BYTES = 32
_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700


def cache_directory() -> Path:
    """`trol-export` in the folder that the XDG Base Directory Specification names; it need not exist."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a path that is not absolute is to be ignored.
    base = Path(chosen) if os.path.isabs(chosen) else Path(os.path.expanduser("~")) / ".cache"
    return base / "trol-export"


def make_folder(folder: Path) -> None:
    """Make a folder of the cache directory, which is this user's alone; raises TrolError when the disk refuses."""
    try:
        cache_directory().mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrolError(
            f"{folder}: cannot be made ({error.strerror}); set XDG_CACHE_HOME to a folder that can be written"
        ) from None


def read_key() -> bytes | None:
    """The key; None where there is none, or none that is whole and that only this user can have read."""
    try:
        with open(_key_path(), "rb") as file:
            status = os.fstat(file.fileno())
            key = file.read(_KEY_BYTES + 1)
    except OSError:
        return None
    return key if len(key) == _KEY_BYTES and _is_private(status) else None


def make_key() -> bytes:
    """The key, made where there is none; raises TrolError when it cannot be kept.

    Of two processes that make one at the same time the last one's stays: what the other has signed is built again.
    """
    key = read_key()
    if key is None:
        make_folder(cache_directory())
        write_whole(_key_path(), os.urandom(_KEY_BYTES), overwrite=True, option="XDG_CACHE_HOME", mode=_PRIVATE_FILE)
        key = read_key()
    if key is None:
        raise TrolError(
            f"{_key_path()}: others can read it here, expected a file of one's own; set XDG_CACHE_HOME to another disk"
        )
    return key


def _key_path() -> Path:
    return cache_directory() / "key"


def _is_private(status: os.stat_result) -> bool:
    """Whether a file is this user's own and nobody else's to read, as far as the system knows users (not Windows)."""
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
