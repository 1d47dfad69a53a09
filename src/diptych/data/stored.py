"""Files of the project that are not on this disk: read in parts from the store that has them, and sent there.

The store offers itself as an entry point, so that the library knows no DVC: a function from a path to a `Store`.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from diptych.errors import DiptychError
from diptych.files import atomic_path, remove_older

STORES = "diptych.stores"
"""Group of the entry points."""
_COPIED_AT_ONCE = 2**23
"""Number of bytes that are copied at once."""
_DAYS_OF_COPIES = 7.0
"""Time for which a copy stays after its last use: a file has a copy for each of its versions."""
DAYS_OF_LEFTOVERS = 1.0
"""Time after which what a process was writing is taken for left by one that was killed."""


class LostError(DiptychError):
    """A file that a store should have and does not, or has not whole."""


class Store(Protocol):
    """Store of files that never change, found by the hash of their content."""

    name: str
    """Name and address, for messages; without secrets."""
    cache: Path
    """Folder for what this machine keeps of the store's files."""

    def find(self, path: Path) -> StoredFile | None:
        """Return the file that belongs at the absolute `path`; None where the store is not known to have it.

        Raises:
            DiptychError: as `files`.
        """
        ...

    def files(self, folder: Path) -> list[StoredFile]:
        """Return the files that belong in the absolute `folder`; none where the store is not known to have it.

        Raises:
            DiptychError: the list of the files is lost, or cannot be read.
        """
        ...

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, which are fewer where the file ends before; all are read at once.

        Raises:
            DiptychError: the store has no such file, or cannot be read.
        """
        ...

    def lacking(self, keys: Collection[str]) -> set[str]:
        """Return those of the keys for which the store has no file now.

        Raises:
            DiptychError: the store cannot be read.
        """
        ...

    def key_of(self, path: Path) -> str:
        """Return the key of a file on this disk, which is a hash of its content."""
        ...

    def send(self, path: Path) -> str:
        """Take a file from this disk, and return its key; the store has the whole file or none.

        Raises:
            DiptychError: the store cannot be written.
        """
        ...

    def send_folder(self, folder: Path, files: Mapping[str, Sent]) -> None:
        """Take note that the folder, which is not on this disk, consists of files that were sent, by their names.

        Raises:
            DiptychError: the store cannot be written.
        """
        ...


class StoredFile(NamedTuple):
    """The file that belongs at `path`, as the store has it under the hash `key`."""

    path: Path
    key: str
    store: Store


class Sent(NamedTuple):
    """A file that a store has taken: its key and its number of bytes."""

    key: str
    size: int


class Range(NamedTuple):
    """The bytes of a file from `start` to before `stop`."""

    file: StoredFile
    start: int
    stop: int


def find_stored(path: Path) -> StoredFile | None:
    """Return the file that belongs at `path` as a store has it; None where no store is known to have it.

    Raises:
        DiptychError: as `Store.files`.
    """
    return next((file for store in _stores(path) if (file := store.find(path.absolute()))), None)


def known_file(path: Path) -> StoredFile:
    """Call `find_stored`.

    Raises:
        DiptychError: no store is known to have the file, or as `Store.files`.
    """
    if stored := find_stored(path):
        return stored
    raise DiptychError(
        f"{path} is neither on this disk nor in a store that is known to have it. Run `dvc push` on a machine that has "
        "it, and take data.dvc and dvc.lock from there."
    )


def stored_files(folder: Path) -> list[StoredFile]:
    """Return the files that belong in `folder` as a store has them; none where no store is known to have it.

    Raises:
        DiptychError: as `Store.files`.
    """
    return next((files for store in _stores(folder) if (files := store.files(folder.absolute()))), [])


def lost_files(folder: Path) -> list[StoredFile]:
    """Return those of `stored_files` that the store does not have now.

    Raises:
        DiptychError: the store cannot be read, or has lost the list of the files.
    """
    files = stored_files(folder)
    lacking = files[0].store.lacking({file.key for file in files}) if files else set()
    return [file for file in files if file.key in lacking]


def local_path(path: Path) -> Path:
    """Return `path`, or where only a store has the file, the path of a copy of it in the cache.

    Raises:
        DiptychError: the store cannot be read.
    """
    if path.exists() or not (stored := find_stored(path)):
        return path
    return copied(stored)


def copied(stored: StoredFile) -> Path:
    """Return the path of a copy of the file in the cache, where it stays while it is used.

    Raises:
        DiptychError: the store cannot be read or has another content, or the cache cannot be written.
    """
    copy = stored.store.cache / "files" / stored.key / stored.path.name
    try:
        if not copy.exists():
            remove_older(copy.parents[1].glob("*/.*.tmp"), DAYS_OF_LEFTOVERS)
            remove_older(copy.parents[1].glob("*"), _DAYS_OF_COPIES)
            with atomic_path(copy, shared=True) as temporary:
                _copy(stored, temporary)
        os.utime(copy.parent)
    except OSError as error:
        raise DiptychError(f"{copy} cannot be written: {error.strerror or error}.") from None
    return copy


def _copy(stored: StoredFile, path: Path) -> None:
    with open_stored(stored, _COPIED_AT_ONCE) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, _COPIED_AT_ONCE)
    if stored.store.key_of(path) != stored.key:
        raise cut_off(stored)


def open_stored(file: StoredFile, at_once: int) -> io.BufferedReader:
    """Open a file of a store, of which `read(n)` requests `at_once` bytes or more at a time.

    Raises:
        DiptychError: reading and closing raise it, as `Store.read` does.
    """
    return io.BufferedReader(_Opened(file), at_once)


class _Opened(io.RawIOBase):
    """A file of a store, each reading of which is a request."""

    def __init__(self, file: StoredFile) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("a store does not tell where a file ends")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")
        wanted = Range(self._file, self._position, self._position + len(target))
        [content] = self._file.store.read([wanted])
        target[: len(content)] = content
        self._position += len(content)
        return len(content)


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Return the bytes of each range; the files are of one store.

    Raises:
        DiptychError: the store has no such file, cannot be read, or has a file that is cut off.
    """
    if not ranges:
        return []
    contents = ranges[0].file.store.read(ranges)
    for (file, start, stop), content in zip(ranges, contents, strict=True):
        if len(content) != stop - start:
            raise cut_off(file)
    return contents


def cut_off(file: StoredFile) -> DiptychError:
    """Return the error that the store has another content than the file's."""
    return LostError(
        f"{file.path} is damaged or cut off in {file.store.name}, where it is {file.key}. Remove it there, then run "
        "`dvc push` on a machine that has it."
    )


def _stores(path: Path) -> Iterator[Store]:
    """Yield the stores that may have the path; one that is not asked for is not imported."""
    return (store for open_store in _openers() if (store := open_store(path.absolute())))


@lru_cache(maxsize=1)
def _openers() -> list[Callable[[Path], Store | None]]:
    return [entry.load() for entry in entry_points(group=STORES)]
