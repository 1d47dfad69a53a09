"""An inbox that is a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diptych.data.captions import encodable
from diptych.errors import DiptychError
from diptych.inbox.drops import CAPTIONS, ChangedError, Drop, Inbox, Stamps, is_looked_at, make_drop, printable


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
                name = printable(path.name)
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
