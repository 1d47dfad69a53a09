"""The size of a cache, and what makes room in it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from diptych.data.cache_folder import LIMIT, CacheFolder
from diptych.errors import DiptychError

UNIT = 2**16


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheFolder:
    """Room for ten units."""
    monkeypatch.setenv(LIMIT, str(10 * UNIT / 2**30))
    return CacheFolder(tmp_path)


def write(path: Path, units: int, opened: int = 0) -> Path:
    """A file that was opened at a time."""
    path.write_bytes(os.urandom(units * UNIT))
    os.utime(path, (opened, opened))
    return path


def has_room(folder: CacheFolder, units: int) -> bool:
    with folder.room(units * UNIT) as room:
        return room


def test_there_is_room_up_to_the_size(folder: CacheFolder, tmp_path: Path) -> None:
    assert has_room(folder, 10)
    assert not has_room(folder, 11)


def test_a_folder_that_does_not_exist_is_empty(folder: CacheFolder, tmp_path: Path) -> None:
    assert has_room(CacheFolder(tmp_path / "none"), 10)


def test_files_that_nobody_uses_make_room_the_oldest_first(folder: CacheFolder, tmp_path: Path) -> None:
    old, new = write(tmp_path / "a", 4, opened=1), write(tmp_path / "b", 4, opened=2)
    assert has_room(folder, 5)
    assert (old.exists(), new.exists()) == (False, True)


def test_files_in_use_stay_and_there_is_no_room(folder: CacheFolder, tmp_path: Path) -> None:
    used, unused = write(tmp_path / "a", 4, opened=1), write(tmp_path / "b", 4, opened=2)
    with used.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not has_room(folder, 7)
        assert (used.exists(), unused.exists()) == (True, False)
    assert has_room(folder, 7)


def test_what_another_thread_is_writing_is_no_room(folder: CacheFolder) -> None:
    with folder.room(6 * UNIT) as first, folder.room(5 * UNIT) as second:
        assert (first, second) == (True, False)
    assert has_room(folder, 5)


def test_what_was_written_is_no_room_for_another_process(folder: CacheFolder, tmp_path: Path) -> None:
    other = CacheFolder(tmp_path)
    with folder.room(6 * UNIT), (tmp_path / "a").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        file.write(os.urandom(6 * UNIT))
        file.flush()
        assert not has_room(other, 5)


@pytest.mark.parametrize("value", ["many", "-1", "inf", "nan"])
def test_a_size_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(LIMIT, value)
    with pytest.raises(DiptychError, match=rf"DIPTYCH_CACHE_GIB is '{value}', not a number of GiB"):
        CacheFolder(tmp_path)
