"""Source of an import that is a webdataset: tar archives with an image and a caption for each sample.

Members of the same name up to the first dot of the file name are a sample: NAME.jpg, NAME.txt and NAME.json, as
img2dataset writes them. An image without a text file has the `caption` of its JSON file. Archives are listed in
parallel, and each image is read from its position in the archive when it is stored; nothing is extracted.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import bracex

from diptych.data.parallel import map_shards
from diptych.data.shards import is_complete
from diptych.data.sources import Source, SourceCaption, SourceImage, checked_split
from diptych.data.tables import USUAL_SUFFIXES
from diptych.errors import DiptychError, some
from diptych.progress import progress

_log = logging.getLogger(__name__)

_MOST_ARCHIVES = 1_000_000
_LIST = "@"
"""First character of the name of a file that lists archives."""
_MOST_TEXT = 2**20
"""Largest size of a caption or a JSON file in bytes."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""First bytes of compressed files: gzip, bzip2, xz, zstd."""
_WITHOUT_IMAGE, _WITHOUT_CAPTION = "no image", "no caption"


@dataclass(frozen=True)
class ArchivedImage:
    """Image file in a tar archive: `size` bytes from `offset`."""

    archive: Path
    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        """Suffix of the file's name."""
        return PurePosixPath(self.name).suffix

    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            OSError: the archive cannot be read, or has become shorter.
        """
        with self.archive.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) != self.size:
            raise OSError(0, "the archive has become shorter")
        return content

    def __str__(self) -> str:
        return f"{self.name} in {self.archive}"


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
        raise DiptychError(f"No archive of {' '.join(patterns)} has an image with a caption{reason}.")
    return WebDataset(Source([replace(image, split=split) for image in images]), damaged)


def _archives(patterns: Sequence[str]) -> list[Path]:
    """Return the absolute paths that the patterns name, each once, in order."""
    paths: dict[Path, None] = {}
    missing = []
    for pattern in patterns:
        for name in _lines(Path(pattern[1:])) if pattern.startswith(_LIST) else _expanded(pattern):
            # Some names of files look like patterns.
            found = [name] if Path(name).is_file() else sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - also absolute patterns

            paths |= dict.fromkeys(Path(path).absolute() for path in found)
            missing += [] if found else [name]
    if missing:
        raise DiptychError(f"{len(missing)} archive(s) are missing: {some(missing)}. Nothing was imported.")
    if not paths:
        raise DiptychError(f"{' '.join(patterns)} names no archive.")
    return list(paths)


def _expanded(pattern: str) -> list[str]:
    try:
        return bracex.expand(pattern, limit=_MOST_ARCHIVES)
    except bracex.ExpansionLimitException:
        raise DiptychError(f"{pattern} names more than {_MOST_ARCHIVES:,} archives.") from None


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DiptychError(f"The list of archives {path} cannot be read: {error}.") from None


def _list(archive: Path) -> _Listed:
    """List the samples of an archive."""
    try:
        with archive.open("rb") as file:
            if (compression := file.read(6)).startswith(_COMPRESSED):
                return _Listed([], Counter(), "is compressed: decompress it first")
        if not compression:
            return _Listed([], Counter(), "is empty")
        with tarfile.open(archive, "r:") as tar:
            members = tar.getmembers()
            if is_complete(archive, members):
                return _samples(archive, tar, members)
            return _Listed([], Counter(), "is cut off")
    except (tarfile.TarError, EOFError, ValueError) as error:
        return _Listed([], Counter(), f"is damaged, or no tar archive ({error})")
    except OSError as error:
        return _Listed([], Counter(), f"cannot be read: {error.strerror or error}")


def _samples(archive: Path, tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo]) -> _Listed:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        if member.isreg():
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            samples.setdefault(f"{folder}/{stem}", {})[f".{suffix.lower()}"] = member
    images: list[SourceImage] = []
    left_out: Counter[str] = Counter()
    for files in samples.values():
        picture = next((files[suffix] for suffix in files if suffix in USUAL_SUFFIXES), None)
        about = _json(tar, files.get(".json"))
        caption = _caption(tar, files.get(".txt"), about)
        if picture is None or caption is None:
            left_out[_WITHOUT_IMAGE if picture is None else _WITHOUT_CAPTION] += 1
            continue
        file = ArchivedImage(archive, picture.name, picture.offset_data, picture.size)
        fields = {"url": about["url"]} if isinstance(about.get("url"), str) else {}
        name = f"{archive.name}/{picture.name}"
        images.append(SourceImage(file, name, None, (SourceCaption(caption),), fields=fields))
    return _Listed(images, left_out)


def _caption(tar: tarfile.TarFile, member: tarfile.TarInfo | None, about: dict[str, Any]) -> str | None:
    text = _text(tar, member) if member is not None else about.get("caption")
    return text.strip() or None if isinstance(text, str) else None


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> dict[str, Any]:
    try:
        content = json.loads(_text(tar, member) or "{}") if member is not None else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """Return the text of a member; None if it is too large for a caption, or not UTF-8."""
    file: IO[bytes] | None = tar.extractfile(member) if member.size <= _MOST_TEXT else None
    try:
        return file.read().decode("utf-8-sig") if file else None
    except UnicodeDecodeError:
        return None
