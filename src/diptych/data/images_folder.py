"""The folder of a source's images: which file a name in captions means, and what to say where there is none."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from diptych.data.captions import encodable
from diptych.errors import DiptychError

_OUTER_BLANKS = re.compile(r"^[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+$")
"""Blanks, and characters without a width."""
_FITS_SHOWN = 3


class ImagesFolder:
    """Finds the files of names in a folder and nowhere else, and remembers names that have none.

    A name that is not spelled as any file is matched where exactly one file fits: by Unicode normalization, by blanks
    around it, with backslashes as separators, or as an absolute path into the folder. Letter case counts: names that
    are hashes or ids may differ by it alone.

    Args:
        path: the folder.
        links_within: a second folder that links may lead into.

    Attributes:
        missing: names without a file.
        respelled: names that are spelled otherwise than their file, and that file.

    Raises:
        DiptychError: there is no such folder.
    """

    def __init__(self, path: Path, links_within: Path | None = None) -> None:
        for folder in (path, links_within):
            if folder is not None and not folder.is_dir():
                raise DiptychError(f"The folder of the images, {folder}, does not exist.")
        self.path = path
        self._roots = [folder.resolve() for folder in (path, links_within) if folder is not None]
        # After a link `..` is another folder than it looks: then the spelling tells nothing.
        spelled = os.path.normpath(path.absolute())
        real = str(self._roots[0])
        self._bases = dict.fromkeys((spelled, real) if os.path.realpath(spelled) == real else (real,))
        self.missing: list[str] = []
        self.respelled: dict[str, Path] = {}
        self._parents: dict[Path, Path] = {}
        self._listings: dict[Path, dict[str, list[str]]] = {}
        self._by_stem: dict[str, list[str]] | None = None

    def find(self, candidates: Sequence[str], where: str) -> Path:
        """Return the file of the first of the candidate names that has one.

        Raises:
            DiptychError: a name or a link leads out of the folder, fits several files, or is none that a file can have;
                `where` tells the record.
        """
        _refuse_impossible(candidates[0], where)
        candidates = [name for name in candidates if encodable(name) == name and "\0" not in name]
        for name in candidates:
            path = self.path / name
            if _is_plain(name) and _is_file(path):
                return self._checked(path, where)
        for name in candidates:
            fits = self._fits(name)
            if len(fits) > 1:
                shown = ", ".join(ascii(fit.relative_to(self.path).as_posix()) for fit in fits[:_FITS_SHOWN])
                raise DiptychError(f"{where}: file name {name!a} fits {len(fits)} files alike: {shown}.")
            if fits:
                self.respelled[candidates[0]] = fits[0]
                return self._checked(fits[0], where)
        if all(self._relative(reading) is None for reading in _readings(candidates[0])):
            raise DiptychError(
                f"{where}: file name {candidates[0]!r} leads out of the images folder {self.path}."
                f"{self._hint(candidates[0])}"
            )
        self.missing.append(candidates[0])
        return self.path / candidates[0]

    def name_of(self, name: str) -> str:
        """Return how the file of `name` is called in the folder, if it is spelled otherwise, else `name` itself."""
        path = self.respelled.get(name)
        return path.relative_to(self.path).as_posix() if path else name

    def describe(self, name: str) -> str:
        """Return a missing name as a message shows it, with what is there instead."""
        path = self.path / name
        problem = ""
        try:
            if path.is_symlink() and not path.exists():
                problem = f" (a link to {encodable(str(path.readlink()))}, which does not exist)"
            elif path.is_dir():
                problem = " (a folder)"
        except OSError as error:
            problem = f" ({error.strerror})"
        return _visible(name) + (problem or self._hint(name))

    def _fits(self, name: str) -> list[Path]:
        """Return the files whose names differ from `name` only in how they are spelled."""
        found: dict[Path, None] = {}
        for relative in filter(None, map(self._relative, _readings(name))):
            folders = [self.path]
            *parents, last = relative.split("/")
            for part in parents:
                folders = [folder / same for folder in folders for same in self._same(folder, part)]
            paths = (folder / same for folder in folders for same in self._same(folder, last))
            found |= dict.fromkeys(path for path in paths if _is_file(path))
        return list(found)

    def _same(self, folder: Path, name: str) -> list[str]:
        """Return the names in `folder` that are spelled as `name`, or else look the same."""
        if folder not in self._listings:
            listing: dict[str, list[str]] = {}
            for other in _names(folder):
                listing.setdefault(_same_look(other), []).append(other)
            self._listings[folder] = listing
        names = self._listings[folder].get(_same_look(name), [])
        return [name] if name in names else names

    def _relative(self, name: str) -> str | None:
        """Return `name` relative to the folder; None if it leads out."""
        for base in self._bases:
            target = os.path.normpath(Path(base, name))
            if Path(target).is_relative_to(base):
                return Path(target).relative_to(base).as_posix()
        if Path(name).is_absolute() and (real := Path(os.path.realpath(name))).is_relative_to(self._roots[0]):
            return real.relative_to(self._roots[0]).as_posix()
        return None

    def _checked(self, path: Path, where: str) -> Path:
        """Return `path`, unless it is a link that leads out."""
        real = self._real(path)
        if not any(real.is_relative_to(root) for root in self._roots):
            raise DiptychError(
                f"{where}: {path} is a link that leads out of the images folder, to {encodable(str(real))}. Copy the "
                "folder with what its links lead to (`cp -rL`), or, with `diptych data import` and `diptych evaluate`, "
                "name by --links-within a folder that links may lead into."
            )
        return path

    def _real(self, path: Path) -> Path:
        """Return `path` without links; folders are resolved once, which counts with a hundred thousand files."""
        if path.is_symlink():
            return path.resolve()
        if path.parent not in self._parents:
            self._parents[path.parent] = path.parent.resolve()
        return self._parents[path.parent] / path.name

    def _hint(self, name: str) -> str:
        """Return which file with nearly this name is there, in brackets; empty if none is."""
        if self._by_stem is None:
            self._by_stem = {}
            for folder, _, names in os.walk(self.path):
                for other in names:
                    path = Path(folder, other).relative_to(self.path).as_posix()
                    self._by_stem.setdefault(_stem(other), []).append(path)
        near = self._by_stem.get(_stem(name), [])
        return f" (there is {_visible(min(near))})" if near else ""


def _refuse_impossible(name: str, where: str) -> None:
    # JSON can spell it, and file systems hold it.
    if encodable(name) != name:
        raise DiptychError(f"{where}: file name {encodable(name)!r} is not in UTF-8: give the file another.")
    if "\0" in name:
        raise DiptychError(f"{where}: file name {name!r} has a zero byte in it, which no file's name can have.")
    if not _OUTER_BLANKS.sub("", name):
        raise DiptychError(f"{where}: the file name is empty.")


def _is_plain(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def _is_file(path: Path) -> bool:
    """A name too long for the file system is the name of no file."""
    try:
        return path.is_file()
    except OSError:
        return False


def _readings(name: str) -> Iterator[str]:
    """Yield what a name may mean: itself, without blanks, the path of a file:// address, with backslashes turned."""
    bare = _OUTER_BLANKS.sub("", name)
    if bare.startswith("file://"):
        bare = unquote(bare.removeprefix("file://"))
    # An address may spell a zero byte, which no file's name has.
    yield from (one for one in dict.fromkeys((name, bare, bare.replace("\\", "/"))) if "\0" not in one)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _same_look(name: str) -> str:
    return unicodedata.normalize("NFC", _OUTER_BLANKS.sub("", name))


def _stem(name: str) -> str:
    """Return what is left of the last part of a name without its ending, letter case and all but letters and digits."""
    last = re.split(r"[/\\]", unquote(_OUTER_BLANKS.sub("", name)))[-1]
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", PurePosixPath(last).stem).casefold())


def _visible(name: str) -> str:
    """Return a name so that blanks, invisible characters and Unicode normalization are seen."""
    name = encodable(name)
    if unicodedata.normalize("NFC", name) != name:
        return ascii(name)
    return name if name.isprintable() and name == name.strip() else repr(name)
