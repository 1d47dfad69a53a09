"""Files of the project that are not on this disk, read in parts from the store that has them.

The store offers itself as an entry point, so that the library knows no DVC: a function from a path to a `StoredFile`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple, Protocol

from diptych.errors import DiptychError

STORES = "diptych.stores"
"""Group of the entry points."""


class Store(Protocol):
    """Store of files that never change, found by the hash of their content."""

    name: str
    """Name and address, for messages; without secrets."""
    cache: Path
    """Folder for what this machine keeps of the store's files."""

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, which are fewer where the file ends before; all are read at once.

        Raises:
            DiptychError: the store has no such file, or cannot be read.
        """
        ...


class StoredFile(NamedTuple):
    """The file that belongs at `path`, as the store has it under the hash `key`."""

    path: Path
    key: str
    store: Store


class Range(NamedTuple):
    """The bytes of a file from `start` to before `stop`."""

    file: StoredFile
    start: int
    stop: int


def find_stored(path: Path) -> StoredFile | None:
    """Return the file that belongs at `path` as a store has it; None where no store is known to have it."""
    # An iterator: a store that is not asked is not imported.
    return next((file for find in _finders() if (file := find(path.absolute()))), None)


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
    """Return the error that the store has not the whole file."""
    return DiptychError(
        f"{file.path} is damaged or cut off in {file.store.name}, where it is {file.key}. Remove it there, then run "
        "`dvc push` on a machine that has it."
    )


@lru_cache(maxsize=1)
def _finders() -> list[Callable[[Path], StoredFile | None]]:
    return [entry.load() for entry in entry_points(group=STORES)]
