"""An inbox in the file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diptych.errors import DiptychError, printable
from diptych.inbox.drops import CAPTIONS, ChangedError, Drop, Inbox, Stamps, make_drop, may_be_drop


class FolderInbox(Inbox):
    """A folder of drops, which are read in place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise DiptychError(
                f"The inbox {folder} is no folder; make it, or name another by --inbox or retrain.inbox."
            )

    def drops(self) -> list[Drop]:
        """Return the complete drops, as `Inbox`."""
        try:
            drops = [self._drop(path) for path in sorted(self.folder.iterdir()) if may_be_drop(path.name)]
        except OSError as error:
            raise DiptychError(f"The inbox {self.folder} cannot be read: {error}.") from None
        return [drop for drop in drops if drop is not None]

    def strays(self) -> list[str]:
        """Return sentences, as `Inbox`."""
        sentences = []
        # A path may vanish meanwhile.
        with suppress(OSError):
            for path in sorted(path for path in self.folder.iterdir() if may_be_drop(path.name)):
                name = printable(path.name)
                if not path.is_dir():
                    sentences.append(f"{name} lies in the inbox itself and is left alone: a drop is a folder")
                elif self._drop(path) is None:
                    sentences.append(f"{name} is left alone until its captions are there: {' or '.join(CAPTIONS)}")
        return sentences

    @contextmanager
    def opened(self, drop: Drop) -> Iterator[Path]:
        """Give the folder, as `Inbox`."""
        path = self.folder / drop.folder
        # Other drops may have been ingested since, for minutes: a file may have become a link that leads out.
        if self._drop(path) != drop:
            raise ChangedError(drop)
        yield path

    def _drop(self, path: Path) -> Drop | None:
        if not path.is_dir():
            return None
        try:
            problem = _outward_link(path)
            stamps = {} if path.is_symlink() else dict(_stamps(path))
            problem = problem or _captions_problem(path, stamps)
        except PermissionError as error:
            # It must not keep the other drops from being ingested.
            stamps, problem = {}, f"It cannot be looked into: {error.strerror}."
        if not problem and not set(stamps) & set(CAPTIONS):
            return None
        return make_drop(path.name, stamps, problem)


def _outward_link(drop: Path) -> str:
    """Return the problem of a drop where the drop, its captions file or its folder of images is a link to elsewhere."""
    for path in (drop, *(drop / name for name in (*CAPTIONS, "images"))):
        # Unlike `resolve`, `realpath` accepts a circle of links.
        if path.is_symlink() and (path == drop or not _real(path).is_relative_to(_real(drop))):
            outer = "the drop" if _real(path).is_relative_to(_real(drop.parent)) else "the inbox"
            return (
                f"{printable(path.name)} is a link that leads out of {outer}. A drop holds the files themselves: "
                "`cp -rL` copies what links lead to."
            )
    return ""


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _captions_problem(drop: Path, stamps: Stamps) -> str:
    """Return the problem of a captions path that is no file: opening a pipe would wait for another process to write."""
    for name in CAPTIONS:
        if name in stamps and not (drop / name).is_file():
            return f"{name} is no file, or a link to none."
    return ""


def _stamps(drop: Path) -> Iterator[tuple[str, str]]:
    """Yield each file's name, and its size and time; links are not followed."""
    for folder, _, names in os.walk(drop):
        for path in (Path(folder, name) for name in names):
            try:
                status = path.lstat()
            except FileNotFoundError:
                # A program that copies may rename its files meanwhile.
                continue
            # An unreadable file is refused. Its time does not change with its permission, so the stamp holds both.
            denied = "" if os.access(path, os.R_OK) else " denied"
            yield path.relative_to(drop).as_posix(), f"{status.st_size} {status.st_mtime_ns}{denied}"
