"""Folder of a cache with a bounded size, in which a file in use has a shared lock."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from diptych.errors import DiptychError

LIMIT = "DIPTYCH_CACHE_GIB"
"""Variable with the size of the cache in GiB."""
_DEFAULT_GIB = 20.0


class CacheFolder:
    """Folder of files, which together keep to a number of bytes on the disk, also if several processes write them.

    Raises:
        DiptychError: DIPTYCH_CACHE_GIB is no size.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limit = _limit()
        self._free = 0
        self._being_written = 0
        self._lock = threading.Lock()

    @contextmanager
    def room(self, size: int) -> Iterator[bool]:
        """Give whether the block may write `size` bytes more, if need be where files that nobody uses were.

        What is in use stays when the cache is full: each epoch reads all rows once, in another order, so that any row
        is as good as another, and replacing one by another gains nothing.
        """
        with self._lock:
            has_room = self._take(size)
        try:
            yield has_room
        finally:
            if has_room:
                with self._lock:
                    self._being_written -= size

    def _take(self, size: int) -> bool:
        if self._free < size:
            # Other processes write too, so the room is taken in parts.
            self._free = min(self._room(), max(size, self._limit // 64))
        if self._free < size:
            self._remove_unused(size)
            self._free = min(self._room(), size)
        if self._free < size:
            return False
        self._free -= size
        self._being_written += size
        return True

    def _room(self) -> int:
        """Return the number of bytes that are neither on the disk nor on the way there."""
        return self._limit - self._used() - self._being_written

    def _used(self) -> int:
        return sum(facts.st_blocks * 512 for _, facts in self._files())

    def _remove_unused(self, size: int) -> None:
        """Remove files that no process has open, those first that were opened longest ago, until there is room."""
        room = self._room()
        for path, facts in sorted(self._files(), key=lambda file: file[1].st_mtime):
            if room >= size:
                return
            if _remove_if_unused(path):
                room += facts.st_blocks * 512

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        with suppress(OSError), os.scandir(self._path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    yield Path(entry.path), entry.stat()


def _remove_if_unused(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


@lru_cache(maxsize=4)
def cache_folder(path: Path) -> CacheFolder:
    """Return the one of this process at `path`."""
    return CacheFolder(path)


def _limit() -> int:
    text = os.environ.get(LIMIT) or str(_DEFAULT_GIB)
    try:
        gib = float(text)
        if not 0 <= gib < float("inf"):
            raise ValueError
    except ValueError:
        raise DiptychError(f"{LIMIT} is {text!r}, not a number of GiB.") from None
    return int(gib * 2**30)
