"""The inbox: a folder, or a prefix in S3, into which new pairs are dropped; which drops are there, and are complete.

A drop is a subfolder that holds a captions file, written last: without one it is not complete yet and is left alone, as
is what has a name that begins with "." or "_". Names in a drop are data: none of them leads out of its folder.
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

from diptych.data.captions import CAPTIONS_FILE, encodable
from diptych.errors import DiptychError

TABLES = ("captions.csv", "captions.tsv")
CAPTIONS = (CAPTIONS_FILE, *TABLES)
"""What makes a subfolder a drop; one of them."""
S3 = "s3://"
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories that no name in a drop may have. Odd blanks and joiners are usual: screenshots and emoji."""
_LONGEST_NAME = 255
"""Bytes that a file system takes."""

Stamps = Mapping[str, str]
"""The files of a drop by their names within it, and what changes when they do."""


@dataclass(frozen=True)
class Drop:
    """A complete drop.

    Attributes:
        name: of its subfolder, as it can be printed.
        fingerprint: of the names, sizes and times or etags of its files: another one, and it is another drop.
        place: where it lies in the inbox.
        problem: why it is not even to be opened; empty if it is.
    """

    name: str
    fingerprint: str
    place: str
    files: tuple[str, ...] = field(default=(), repr=False)
    problem: str = ""


class ChangedError(DiptychError):
    """A drop is not what it was when the inbox was looked at: it is for the next look to say what it has become."""


class Inbox(ABC):
    """Where drops are."""

    @abstractmethod
    def drops(self) -> list[Drop]:
        """Those that are complete, by name.

        Raises:
            DiptychError: the inbox cannot be read.
        """

    def strays(self) -> list[str]:
        """What lies there and is no drop, or none yet, a sentence each."""
        return []

    @abstractmethod
    def opened(self, drop: Drop) -> AbstractContextManager[Path]:
        """The folder with the drop's files, while the context lasts.

        Raises:
            ChangedError: they have changed since the drop was found.
            DiptychError: they cannot be read now; that says nothing about the drop.
        """


def make_drop(place: str, stamps: Stamps, problem: str = "") -> Drop:
    """The drop that lies at `place`; its files may yet be a problem."""
    digest = hashlib.sha256(problem.encode())
    for name, stamp in sorted(stamps.items()):
        # A name has no zero in it, so no two lists of names and stamps look the same.
        digest.update(os.fsencode(name) + b"\0" + os.fsencode(stamp) + b"\0")
    captions = [name for name in CAPTIONS if name in stamps]
    if not problem and len(captions) > 1:
        problem = f"It holds {' and '.join(captions)}, of which one is to be there."
    return Drop(printable(place), digest.hexdigest(), place, tuple(sorted(stamps)), problem)


def is_looked_at(name: str) -> bool:
    """Whether what has this name may be a drop."""
    return not name.startswith((".", "_"))


def unsafe_names(names: Iterable[str]) -> str:
    """What is wrong with the first of `names` that cannot be the name of a file below a folder; empty if none is."""
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
        if taken := files & {str(parent) for parent in PurePosixPath(name).parents}:
            return f"{min(taken)!r} is a file, and a folder with files in it too."
    return ""


def printable(name: str) -> str:
    """With a question mark for what would begin another line, or tell a terminal what to do."""
    return "".join(one if one.isprintable() else "?" for one in encodable(name))
