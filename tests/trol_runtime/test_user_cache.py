"""The user's cache directory, and the key in it that nobody else may have read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trol_runtime.errors import TrolError
from trol_runtime.user_cache import cache_directory, make_folder, make_key, read_key

posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trol-export"


def test_the_directory_lies_where_the_user_keeps_caches(cache: Path) -> None:
    assert cache_directory() == cache


@pytest.mark.parametrize("chosen", ["", "relative/folder"])
def test_without_an_absolute_choice_it_lies_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", chosen)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "trol-export"


def test_looking_for_a_key_makes_nothing(cache: Path) -> None:
    assert read_key() is None
    assert not cache.exists()


def test_a_key_is_made_once_and_stays(cache: Path) -> None:
    key = make_key()
    assert len(key) == 32
    assert make_key() == read_key() == key


def test_two_users_have_two_keys(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert make_key() != key


@posix
def test_key_and_folder_are_the_users_alone_whatever_the_umask_allows(cache: Path) -> None:
    umask = os.umask(0)
    try:
        make_key()
    finally:
        os.umask(umask)
    assert (cache.stat().st_mode & 0o777, (cache / "key").stat().st_mode & 0o777) == (0o700, 0o600)
    assert [path.name for path in cache.iterdir()] == ["key"]


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_or_write_counts_for_nothing_and_is_made_anew(cache: Path, mode: int) -> None:
    key = make_key()
    (cache / "key").chmod(mode)
    assert read_key() is None
    assert make_key() not in (None, key)
    assert (cache / "key").stat().st_mode & 0o777 == 0o600


@posix
def test_a_key_of_another_user_counts_for_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(cache).st_uid + 1)
    assert read_key() is None


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_key_is_made_anew(cache: Path, content: bytes) -> None:
    make_key()
    (cache / "key").write_bytes(content)
    assert read_key() is None
    assert len(make_key()) == 32


@posix
def test_a_disk_that_knows_no_permissions_keeps_no_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: os.stat(cache).st_uid + 1)
    with pytest.raises(TrolError) as caught:
        make_key()
    assert str(caught.value) == (
        f"{cache / 'key'}: others can read it here, expected a file of one's own; set XDG_CACHE_HOME to another disk"
    )


def test_a_folder_that_cannot_be_made_is_one_line(cache: Path) -> None:
    cache.parent.write_text("a file")
    with pytest.raises(TrolError) as caught:
        make_folder(cache / "plans")
    assert str(caught.value).startswith(f"{cache / 'plans'}: cannot be made (")
    assert str(caught.value).endswith("); set XDG_CACHE_HOME to a folder that can be written")
