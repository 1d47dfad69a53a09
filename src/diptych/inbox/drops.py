"""The inbox: a folder, or a prefix in S3, into which new pairs are dropped; which drops are there, and are complete.

A drop is a subfolder that holds a captions file, written last: without one it is not complete yet and is left alone, as
is what has a name that begins with "." or "_". Names in a drop are data: none of them leads out of its folder.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from diptych.data.captions import CAPTIONS_FILE, encodable
from diptych.errors import DiptychError
from diptych.workspace import Workspace

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


def open_inbox(workspace: Workspace, address: str) -> Inbox:
    """The inbox at `address`: a folder (a relative one is in the project), or s3://bucket/prefix.

    Raises:
        DiptychError: there is no such folder, or s3fs is not installed.
    """
    if address.startswith(S3):
        from diptych.inbox.s3 import S3Inbox

        return S3Inbox(address, workspace.local / "inbox")
    return FolderInbox(workspace.root / address)


class FolderInbox(Inbox):
    """A folder; its drops are read where they lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise DiptychError(
                f"The inbox {folder} is no folder; make it, or name another by --inbox or retrain.inbox."
            )

    def drops(self) -> list[Drop]:
        """As `Inbox`."""
        try:
            found = [self._drop(path) for path in sorted(self.folder.iterdir()) if is_looked_at(path.name)]
        except OSError as error:
            raise DiptychError(f"The inbox {self.folder} cannot be read: {error}.") from None
        return [drop for drop in found if drop is not None]

    def strays(self) -> list[str]:
        """As `Inbox`."""
        found = []
        # What goes away meanwhile is none.
        with suppress(OSError):
            for path in sorted(path for path in self.folder.iterdir() if is_looked_at(path.name)):
                name = _printable(path.name)
                if not path.is_dir():
                    found.append(f"{name} lies in the inbox itself and is left alone: a drop is a folder")
                elif self._drop(path) is None:
                    found.append(f"{name} is left alone until its captions are there: {' or '.join(CAPTIONS)}")
        return found

    @contextmanager
    def opened(self, drop: Drop) -> Iterator[Path]:
        """As `Inbox`."""
        path = self.folder / drop.place
        # Others may have been taken in between, for minutes: a file of then may be a link that leads out now.
        if self._drop(path) != drop:
            raise ChangedError(f"drop {drop.name} is being changed; the next run looks at it again")
        yield path

    def _drop(self, path: Path) -> Drop | None:
        if not path.is_dir():
            return None
        try:
            problem = _leading_out(path)
            stamps = {} if path.is_symlink() else dict(_stamps(path))
            problem = problem or _no_file(path, stamps)
        except PermissionError as error:
            # The other drops are none the worse for it.
            stamps, problem = {}, f"It cannot be looked into: {error.strerror}."
        if not problem and not set(stamps) & set(CAPTIONS):
            return None
        return make_drop(path.name, stamps, problem)


def make_drop(place: str, stamps: Stamps, problem: str = "") -> Drop:
    """The drop that lies at `place`; its files may yet be a problem."""
    digest = hashlib.sha256(problem.encode())
    for name, stamp in sorted(stamps.items()):
        # A name has no zero in it, so no two lists of names and stamps look the same.
        digest.update(os.fsencode(name) + b"\0" + os.fsencode(stamp) + b"\0")
    captions = [name for name in CAPTIONS if name in stamps]
    if not problem and len(captions) > 1:
        problem = f"It holds {' and '.join(captions)}, of which one is to be there."
    return Drop(_printable(place), digest.hexdigest(), place, tuple(sorted(stamps)), problem)


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


def _printable(name: str) -> str:
    """With a question mark for what would begin another line, or tell a terminal what to do."""
    return "".join(one if one.isprintable() else "?" for one in encodable(name))


def _leading_out(drop: Path) -> str:
    """What is wrong with a drop, its captions file or its folder of images, if one of them is a link to elsewhere."""
    for path in (drop, *(drop / name for name in (*CAPTIONS, "images"))):
        # Unlike `resolve` it takes links that lead round in a circle.
        if path.is_symlink() and (path == drop or not _real(path).is_relative_to(_real(drop))):
            outer = "the drop" if _real(path).is_relative_to(_real(drop.parent)) else "the inbox"
            return (
                f"{encodable(path.name)} is a link that leads out of {outer}. A drop holds the files themselves: "
                "`cp -rL` copies what links lead to."
            )
    return ""


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _no_file(drop: Path, stamps: Stamps) -> str:
    """What is wrong with a captions file that is none: to open a pipe is to wait for whoever writes to it."""
    for name in CAPTIONS:
        if name in stamps and not (drop / name).is_file():
            return f"{name} is no file, or a link to none."
    return ""


def _stamps(drop: Path) -> Iterator[tuple[str, str]]:
    """Links are not followed."""
    for folder, _, names in os.walk(drop):
        for path in (Path(folder, name) for name in names):
            try:
                found = path.lstat()
            except FileNotFoundError:
                # Who copies renames, while this looks.
                continue
            # What may not be read is refused; once it may, which no time tells, it is another drop.
            denied = "" if os.access(path, os.R_OK) else " denied"
            yield path.relative_to(drop).as_posix(), f"{found.st_size} {found.st_mtime_ns}{denied}"
