"""Folder with the images of a source: it finds the file of a name, and describes names without a file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from diptych.data.captions import encodable
from diptych.errors import DiptychError, some

_OUTER_BLANKS = re.compile(r"^[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+$")
"""Leading and trailing blanks and zero-width characters."""


class ImagesFolder:
    """Folder in which the image files of one source are found by name; it collects the names without a file.

    A name may differ in spelling from its file if exactly one file matches it. It may differ by Unicode normalization,
    by blanks around it, by backslashes as separators, or by being an absolute path into the folder. Letter case must
    match, because hashes and ids may differ by case alone. Links may also lead into the folder `links_within`.

    Attributes:
        missing: names without a file.
        respelled: file of each name that differs in spelling from its file.

    Raises:
        DiptychError: there is no such folder.
    """

    def __init__(self, path: Path, links_within: Path | None = None) -> None:
        for folder in (path, links_within):
            if folder is not None and not folder.is_dir():
                raise DiptychError(f"The folder of the images, {folder}, does not exist.")
        self.path = path
        self._roots = [folder.resolve() for folder in (path, links_within) if folder is not None]
        # After a link, `..` is not the parent in the path: then only the real path can be compared.
        spelled = os.path.normpath(path.absolute())
        real = str(self._roots[0])
        self._bases = dict.fromkeys((spelled, real) if os.path.realpath(spelled) == real else (real,))
        self.missing: list[str] = []
        self.respelled: dict[str, Path] = {}
        self._parents: dict[Path, Path] = {}
        self._listings: dict[Path, dict[str, list[str]]] = {}
        self._by_stem: dict[str, list[str]] | None = None

    def find(self, candidates: Sequence[str], where: str) -> Path:
        """Return the file of the first candidate name that has one; otherwise record the first name as missing.

        Raises:
            DiptychError: a name or a link leads out of the folder, a name matches several files, or no file can have
                the name. `where` names the record in the message.
        """
        _refuse_impossible(candidates[0], where)
        candidates = [name for name in candidates if encodable(name) == name and "\0" not in name]
        for name in candidates:
            path = self.path / name
            is_plain = not name.startswith("/") and ".." not in name.split("/")
            if is_plain and _is_file(path):
                return self._within(path, where)
        for name in candidates:
            matches = self._matches(name)
            if len(matches) > 1:
                shown = some([ascii(path.relative_to(self.path).as_posix()) for path in matches])
                raise DiptychError(
                    f"{where}: file name {name!a} matches {len(matches)} files: {shown}. Write the exact name of one."
                )
            if matches:
                self.respelled[candidates[0]] = matches[0]
                return self._within(matches[0], where)
        if all(self._relative(reading) is None for reading in _readings(candidates[0])):
            raise DiptychError(
                f"{where}: file name {candidates[0]!r} leads out of the images folder {self.path}."
                f"{self._hint(candidates[0])}"
            )
        self.missing.append(candidates[0])
        return self.path / candidates[0]

    def refuse_missing(self, annotations: Path, total: int, repair: str) -> None:
        """Raise a DiptychError with `repair` if any of the `total` image files named by `annotations` is missing."""
        if self.missing:
            names = some([self._describe(name) for name in self.missing])
            raise DiptychError(
                f"{annotations}: {len(self.missing)} of {total} image files are not in {self.path}: {names}. {repair}"
            )

    def name_of(self, name: str) -> str:
        """Return the file's name in the folder if `name` differs from it in spelling, else `name` itself."""
        path = self.respelled.get(name)
        return path.relative_to(self.path).as_posix() if path else name

    def _describe(self, name: str) -> str:
        """Return a missing name for a message, with what stands in its place."""
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

    def _matches(self, name: str) -> list[Path]:
        """Return the files whose names differ from `name` only in spelling."""
        matches: dict[Path, None] = {}
        for relative in filter(None, map(self._relative, _readings(name))):
            folders = [self.path]
            *parents, last = relative.split("/")
            for part in parents:
                folders = [folder / other for folder in folders for other in self._equivalent(folder, part)]
            paths = (folder / other for folder in folders for other in self._equivalent(folder, last))
            matches |= dict.fromkeys(path for path in paths if _is_file(path))
        return list(matches)

    def _equivalent(self, folder: Path, name: str) -> list[str]:
        """Return `name` if `folder` has it, else the names there that differ by normalization and outer blanks."""
        if folder not in self._listings:
            listing = self._listings[folder] = {}
            with suppress(OSError):
                for path in folder.iterdir():
                    listing.setdefault(_normalized(path.name), []).append(path.name)
        names = self._listings[folder].get(_normalized(name), [])
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

    def _within(self, path: Path, where: str) -> Path:
        """Return `path`, unless it is a link that leads out."""
        real = self._real(path)
        if not any(real.is_relative_to(root) for root in self._roots):
            raise DiptychError(
                f"{where}: {path} is a link that leads out of the images folder, to {encodable(str(real))}. Copy the "
                "folder with the targets of its links (`cp -rL`). With `diptych data import` and `diptych evaluate` "
                "you may instead give --links-within the folder that links may lead into."
            )
        return path

    def _real(self, path: Path) -> Path:
        """Return `path` without links. Each folder is resolved once, because there may be a hundred thousand files."""
        if path.is_symlink():
            return path.resolve()
        if path.parent not in self._parents:
            self._parents[path.parent] = path.parent.resolve()
        return self._parents[path.parent] / path.name

    def _hint(self, name: str) -> str:
        """Return, in brackets, a file with nearly this name; empty if there is none."""
        if self._by_stem is None:
            self._by_stem = {}
            for folder, _, names in os.walk(self.path):
                for other in names:
                    path = Path(folder, other).relative_to(self.path).as_posix()
                    self._by_stem.setdefault(_stem(other), []).append(path)
        similar = self._by_stem.get(_stem(name), [])
        return f" (there is {_visible(min(similar))})" if similar else ""


def _refuse_impossible(name: str, where: str) -> None:
    # JSON and file systems allow names that are not valid Unicode.
    if encodable(name) != name:
        raise DiptychError(f"{where}: file name {encodable(name)!r} is not in UTF-8: rename the file.")
    if "\0" in name:
        raise DiptychError(f"{where}: file name {name!r} contains a zero byte, which no file name can have.")
    if not _OUTER_BLANKS.sub("", name):
        raise DiptychError(f"{where}: the file name is empty.")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # The name is too long for the file system.
        return False


def _readings(name: str) -> Iterator[str]:
    """Yield readings of a name: itself, without outer blanks, as the path of a file:// URL, with / for backslashes."""
    bare = _OUTER_BLANKS.sub("", name)
    if bare.startswith("file://"):
        bare = unquote(bare.removeprefix("file://"))
    # A URL may encode a zero byte, which no file name has.
    yield from (text for text in dict.fromkeys((name, bare, bare.replace("\\", "/"))) if "\0" not in text)


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFC", _OUTER_BLANKS.sub("", name))


def _stem(name: str) -> str:
    """Return the letters and digits of a file name without its folder and suffix, in lower case."""
    last = re.split(r"[/\\]", unquote(_OUTER_BLANKS.sub("", name)))[-1]
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", PurePosixPath(last).stem).casefold())


def _visible(name: str) -> str:
    """Return a name in a form that shows outer blanks, invisible characters and unusual normalization."""
    name = encodable(name)
    if unicodedata.normalize("NFC", name) != name:
        return ascii(name)
    return name if name.isprintable() and name == name.strip() else repr(name)
