"""The inbox: a folder, or a prefix in S3, into which new pairs are dropped, and the complete drops in it.

A drop is a subfolder that holds a captions file, written last. Without one it is not complete yet, and is skipped, as
is every name that begins with "." or "_". Names in a drop are data: none of them leads out of its folder.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from diptych.data.captions import CAPTIONS_FILE
from diptych.errors import DiptychError, printable

CAPTIONS = (CAPTIONS_FILE, "captions.csv", "captions.tsv")
"""Names of a captions file; a drop holds one of them."""
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories that no name in a drop may have. Unusual spaces and joiners are allowed: screenshots and emoji."""
_LONGEST_NAME = 255
"""Bytes of a name that file systems accept."""

Stamps = Mapping[str, str]
"""Files of a drop by their names within it, each with a text that changes when the file does."""


@dataclass(frozen=True)
class Drop:
    """A complete drop.

    Attributes:
        name: name of its subfolder, in printable characters.
        fingerprint: SHA-256 of the names, sizes and times or etags of its files; a drop that changes is another drop.
        folder: name of its subfolder in the inbox.
        files: names of its files within it.
        problem: why it must not be opened; empty if it may be.
    """

    name: str
    fingerprint: str
    folder: str
    files: tuple[str, ...] = field(default=(), repr=False)
    problem: str = ""


class ChangedError(DiptychError):
    """A drop has changed since the inbox was read; the next run reads it again."""

    def __init__(self, drop: Drop) -> None:
        super().__init__(f"drop {drop.name} is being changed; the next run reads it again")


class Inbox(ABC):
    """A source of drops."""

    @abstractmethod
    def drops(self) -> list[Drop]:
        """Return the complete drops, sorted by name.

        Raises:
            DiptychError: the inbox cannot be read.
        """

    def strays(self) -> list[str]:
        """Return a sentence for each thing in the inbox that is no drop, or none yet."""
        return []

    @abstractmethod
    def opened(self, drop: Drop) -> AbstractContextManager[Path]:
        """Give the folder with the drop's files for the duration of the block.

        Raises:
            ChangedError: they have changed since `drops` returned the drop.
            DiptychError: they cannot be read now, which is no fault of the drop.
        """


def make_drop(folder: str, stamps: Stamps, problem: str = "") -> Drop:
    """Return the drop in the subfolder `folder` of the inbox; more than one captions file is a problem of it."""
    digest = hashlib.sha256(problem.encode())
    for name, stamp in sorted(stamps.items()):
        # A name has no zero in it, so no two lists of names and stamps look the same.
        digest.update(os.fsencode(name) + b"\0" + os.fsencode(stamp) + b"\0")
    captions = [name for name in CAPTIONS if name in stamps]
    if not problem and len(captions) > 1:
        problem = f"It holds {' and '.join(captions)}, of which one is to be there."
    return Drop(printable(folder), digest.hexdigest(), folder, tuple(sorted(stamps)), problem)


def may_be_drop(name: str) -> bool:
    """Return whether a drop may have this name."""
    return not name.startswith((".", "_"))


def name_problem(names: Iterable[str]) -> str:
    """Return the problem of the first of `names` that cannot name a file below a folder; empty if all can."""
    files = set(names)
    for name in sorted(files):
        parts = name.split("/")
        if ".." in parts or name.startswith("/"):
            return f"The name {name!r} leads out of its folder."
        if {"", "."} & set(parts):
            return f"The name {name!r} has an empty part or a lone dot, which no path of a file has."
        if "\\" in name:
            return f"The name {name!r} has a backslash in it: folders are separated by /."
        if any(unicodedata.category(character) in _CONTROL for character in name):
            return f"The name {name!r} has a control character in it."
        if max(len(part.encode(errors="replace")) for part in parts) > _LONGEST_NAME:
            return f"The name {name[:60]!r}… is longer than a file's can be."
        if ambiguous := files & {str(parent) for parent in PurePosixPath(name).parents}:
            return f"{min(ambiguous)!r} is a file, and a folder with files in it too."
    return ""
