"""Source of an import that is a webdataset: tar archives with an image and a caption for each sample.

Members of the same name up to the first dot of the file name are a sample: NAME.jpg, NAME.txt and NAME.json, as
img2dataset writes them. An image without a text file has the `caption` of its JSON file. Archives are listed in
parallel, and each image is read from its position in the archive when it is stored; nothing is extracted.
"""

from __future__ import annotations

import codecs
import glob
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import bracex

from diptych.data.captions import encodable
from diptych.data.parallel import map_shards
from diptych.data.shards import has_more, is_complete, read_range
from diptych.data.sources import Source, SourceCaption, SourceImage, checked_split
from diptych.data.tables import USUAL_SUFFIXES
from diptych.errors import DiptychError, printable, some
from diptych.progress import progress

_log = logging.getLogger(__name__)

_MOST_ARCHIVES = 1_000_000
_LIST = "@"
"""First character of the name of a file that lists archives."""
_MOST_TEXT = 2**20
"""Largest size of a caption or a JSON file in bytes."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""First bytes of compressed files: gzip, bzip2, xz, zstd."""
_MOST_SHOWN = 200
"""Number of characters of a pattern that a message shows."""
_WITHOUT_IMAGE, _WITHOUT_CAPTION = "no image", "no caption in UTF-8"
_AMBIGUOUS = "several files of the same name"


class _DamagedError(ValueError):
    """An archive cannot be imported, for the reason that the message says."""


@dataclass(frozen=True)
class ArchivedImage:
    """Image file in a tar archive: `size` bytes from `offset`; `stamp` is that of the archive when it was listed."""

    archive: Path
    name: str
    offset: int
    size: int
    stamp: tuple[int, int]

    @property
    def suffix(self) -> str:
        """Suffix of the file's name."""
        return PurePosixPath(self.name).suffix

    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            OSError: the archive cannot be read, or is another one than was listed.
        """
        content = read_range(self.archive, self.offset, self.size)
        if len(content) != self.size or _stamp(self.archive) != self.stamp:
            raise OSError(0, "the archive has changed since it was listed")
        return content

    def __str__(self) -> str:
        return printable(f"{self.name} in {self.archive}")


class _Listed(NamedTuple):
    """Outcome of listing an archive."""

    images: list[SourceImage]
    left_out: Counter[str]
    """Number of samples that are left out, by the reason."""
    damage: str = ""
    """Reason why the archive cannot be read."""


class WebDataset(NamedTuple):
    """Images of the archives that can be read, and the others with the reasons."""

    source: Source
    damaged: list[tuple[Path, str]]


def webdataset_source(patterns: Sequence[str], split: str | None, workers: int) -> WebDataset:
    """List the images of archives.

    Args:
        patterns: paths of archives, such as `shards/{00000..00099}.tar` or `shards/*.tar`; or @FILE, whose lines are
            paths.
        split: the split of all images; None: they are dealt.
        workers: number of processes.

    Raises:
        DiptychError: archives are missing, or none has an image with a caption.
    """
    checked_split(split, "--split")
    archives = _archives(patterns)
    images: list[SourceImage] = []
    damaged: list[tuple[Path, str]] = []
    left_out: Counter[str] = Counter()
    with progress(None, "listing archives", unit="archives", total=len(archives)) as bar:
        for archive, listed in zip(archives, map_shards(_list, archives, workers, name=str), strict=True):
            images += listed.images
            left_out += listed.left_out
            damaged += [(archive, listed.damage)] if listed.damage else []
            bar.update(1)
    if left_out:
        counts = ", ".join(f"{count:,} have {reason}" for reason, count in sorted(left_out.items()))
        _log.warning("Of the samples in %d archive(s), some are left out: %s.", len(archives), counts)
    if not images:
        reason = f": {damaged[0][0]} {damaged[0][1]}" if damaged else ""
        raise DiptychError(f"No archive of {_shown(' '.join(patterns))} has an image with a caption{reason}.")
    return WebDataset(Source([replace(image, split=split) for image in images]), damaged)


def _archives(patterns: Sequence[str]) -> list[Path]:
    """Return the absolute paths that the patterns name, each once, in order."""
    paths: dict[Path, None] = {}
    missing = []
    for pattern in patterns:
        for name in _lines(pattern[1:]) if pattern.startswith(_LIST) else _expanded(pattern):
            # Some names of files look like patterns; those of `Path.glob` cannot be absolute.
            found = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))  # noqa: PTH113, PTH207
            paths |= dict.fromkeys(Path(path).absolute() for path in found)
            missing += [] if found else [_shown(name)]
    if missing:
        raise DiptychError(f"{len(missing)} archive(s) are missing: {some(missing)}. Nothing was imported.")
    if not paths:
        raise DiptychError(f"{_shown(' '.join(patterns))} names no archive.")
    return list(paths)


def _expanded(pattern: str) -> list[str]:
    if os.path.isfile(pattern):  # noqa: PTH113 - Path.is_file fails on names that are too long
        return [pattern]
    try:
        return bracex.expand(pattern, limit=_MOST_ARCHIVES)
    except (bracex.ExpansionLimitException, RecursionError, ValueError):
        raise DiptychError(f"{_shown(pattern)} names more than {_MOST_ARCHIVES:,} archives.") from None


def _lines(path: str) -> list[str]:
    """Return the names that a file lists; their bytes are those that the file system has."""
    try:
        content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:
        raise DiptychError(f"The list of archives {_shown(path)} cannot be read: {error}.") from None
    return [name for line in content.splitlines() if (name := os.fsdecode(line.strip()))]


def _shown(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _list(archive: Path) -> _Listed:
    """List the samples of an archive."""
    try:
        return _samples(archive)
    except FileNotFoundError:
        raise DiptychError(
            f"{archive} is gone, or a node of the cluster does not see it: archives need storage that all nodes share."
        ) from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = str(error) if isinstance(error, _DamagedError) else f"is damaged, or no tar archive ({error})"
    return _Listed([], Counter(), reason)


def _samples(archive: Path) -> _Listed:
    stamp = _stamp(archive)
    _refuse_other_files(archive)
    images: list[SourceImage] = []
    left_out: Counter[str] = Counter()
    with tarfile.open(archive, "r:") as tar:
        for files in _by_key(_members(archive, tar)):
            pictures = [member for suffix, member in files if suffix in USUAL_SUFFIXES]
            by_suffix = dict(files)
            about = _json(tar, by_suffix.get(".json"))
            caption = _caption(tar, by_suffix.get(".txt"), about)
            if len(by_suffix) < len(files) or len(pictures) > 1:
                left_out[_AMBIGUOUS] += 1
            elif not pictures or caption is None:
                left_out[_WITHOUT_CAPTION if pictures else _WITHOUT_IMAGE] += 1
            else:
                (picture,) = pictures
                file = ArchivedImage(archive, picture.name, picture.offset_data, picture.size, stamp)
                fields = {"url": encodable(about["url"])} if isinstance(about.get("url"), str) else {}
                name = encodable(f"{archive.name}/{picture.name}")
                images.append(SourceImage(file, name, None, (SourceCaption(caption),), fields=fields))
    return _Listed(images, left_out)


def _refuse_other_files(archive: Path) -> None:
    """Raise an error for what is no file, is empty or compressed."""
    if not archive.is_file():
        archive.stat()
        raise _DamagedError("is no file")
    with archive.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if not head:
        raise _DamagedError("is empty")
    if head.startswith(_COMPRESSED) and head[257:262] != b"ustar":
        raise _DamagedError("is compressed: decompress it first")


def _members(archive: Path, tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return the members of an archive that is whole."""
    members: list[tarfile.TarInfo] = []
    for member in tar:
        # A negative size would lead back to members that were read, without end.
        if member.size < 0 or (members and member.offset <= members[-1].offset):
            raise _DamagedError("is damaged: its members overlap")
        if member.issparse():
            raise _DamagedError("has sparse files: pack it again without tar's --sparse")
        members.append(member)
    with archive.open("rb") as file:
        if not is_complete(file, members):
            raise _DamagedError("is cut off")
        more = has_more(file, members)
    if more:
        raise _DamagedError("has more after its end: archives that were joined, or a gap in a download")
    return members


def _by_key(members: Sequence[tarfile.TarInfo]) -> Iterable[list[tuple[str, tarfile.TarInfo]]]:
    """Return the files of each sample with their suffixes."""
    samples: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    for member in members:
        if member.isreg():
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            samples.setdefault(f"{folder}/{stem}", []).append((f".{suffix.lower()}", member))
    return samples.values()


def _stamp(archive: Path) -> tuple[int, int]:
    status = archive.stat()
    return status.st_size, status.st_mtime_ns


def _caption(tar: tarfile.TarFile, member: tarfile.TarInfo | None, about: dict[str, Any]) -> str | None:
    text = _text(tar, member) if member is not None else about.get("caption")
    return text.strip() or None if isinstance(text, str) else None


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> dict[str, Any]:
    try:
        content = json.loads(_text(tar, member) or "{}") if member is not None else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """Return the text of a member; None if it is too large for a caption, or not UTF-8."""
    file: IO[bytes] | None = tar.extractfile(member) if member.size <= _MOST_TEXT else None
    try:
        return file.read().decode("utf-8-sig") if file else None
    except UnicodeDecodeError:
        return None
