"""Sources: the places where the images of a collection are, which is the dataset, or a folder or prefix with files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.data.captions import CAPTIONS_FILE, encodable, iterate_records
from diptych.data.shards import Member, list_members, read_member
from diptych.data.tables import USUAL_SUFFIXES
from diptych.errors import DiptychError, some
from diptych.remote import S3, errors_explained, file_system

log = logging.getLogger(__name__)

Value = bool | int | float | str


@dataclass(frozen=True)
class Item:
    """An image of a collection, which has not been read yet."""

    path: str
    """Name of the image, unique in the collection."""
    stamp: str
    """Text that changes when the file, its captions or its attributes do."""
    captions: tuple[str, ...] = ()
    attributes: Mapping[str, Value | None] = field(default_factory=dict)


class SourceError(DiptychError):
    """An image that is not there any more, or cannot be read."""


class Source(ABC):
    """The place where the images of a collection are.

    Attributes:
        description: JSON from which `open_source` makes this source again.
    """

    description: dict[str, str]

    @abstractmethod
    def items(self) -> list[Item]:
        """Return all images, ordered by path.

        Raises:
            DiptychError: the place is missing or cannot be read; the message names the file or row.
        """

    @property
    @abstractmethod
    def inputs(self) -> list[Path]:
        """Absolute paths of files by which a node of a cluster proves that it sees the same images."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the bytes of the image file.

        Raises:
            SourceError: it is gone or cannot be read; the message names it by its path in the collection.
        """


class DatasetSource(Source):
    """The images of the dataset in the folder `data`, or of one of its splits, with their captions."""

    def __init__(self, data: Path, split: str = "") -> None:
        self.description = {"kind": "dataset", "split": split}
        self._data, self._split = data.absolute(), split

    @cached_property
    def _members(self) -> dict[str, Member]:
        return {member.name: member for member in list_members(self._data)}

    def items(self) -> list[Item]:
        """Return the images, as `Source`; those of one content have the hash of it as stamp."""
        captions = defaultdict(list)
        for annotation in iterate_records(self._data, "annotations"):
            if isinstance(annotation["caption"], str):
                captions[annotation["image_id"]].append(annotation["caption"])
        found, splits = [], set()
        for record in iterate_records(self._data, "images"):
            split = str(record.get("split") or "")
            splits.add(str(record.get("split")))
            name = record["file_name"]
            if name in self._members and self._split in ("", split):
                texts = tuple(captions[record["id"]])
                content = record.get("sha256") or asdict(self._members[name])
                found.append(make_item(name, content, texts, {"split": split}))
        if self._split and not found:
            raise DiptychError(f"The dataset has no split {self._split!r}: it has {some(sorted(splits))}.")
        return sorted(found, key=lambda item: item.path)

    @property
    def inputs(self) -> list[Path]:
        """The captions, which name the images."""
        return [self._data / CAPTIONS_FILE]

    def read(self, path: str) -> bytes:
        """Return the bytes of the image, as `Source`."""
        if path not in self._members:
            raise SourceError(f"{path} is not in the dataset any more.")
        return read_member(self._data, self._members[path])


class FilesSource(Source):
    """The image files below a folder or below a prefix in S3, known by the suffixes of their names.

    The folder that a file is in is its attribute. Links are not followed, and names that begin with a dot are left out.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") if address.startswith(S3) else str(Path(address).absolute())
        self.description = {"kind": "files", "address": self.address}
        self._is_remote = self.address.startswith(S3)
        if self._is_remote and not self.address.removeprefix(S3):
            raise DiptychError(f"{address} names no bucket: s3://bucket/prefix is needed.")

    def __reduce__(self) -> tuple[type[FilesSource], tuple[str]]:
        """Leave the list of the files behind: a node of a cluster reads files by their paths."""
        return type(self), (self.address,)

    @cached_property
    def _remote(self) -> Any:
        return file_system("A collection")

    def items(self) -> list[Item]:
        """Return the images, as `Source`."""
        images = {path: stamp for path, stamp in self._stamps.items() if _is_image(path)}
        if odd := [path for path in images if encodable(path) != path]:
            log.warning("%d images are left out, since their names are not UTF-8.", len(odd))
            images = {path: stamp for path, stamp in images.items() if path not in odd}
        return [
            make_item(path, stamp, (), {"folder": str(PurePosixPath(path).parent)})
            for path, stamp in sorted(images.items())
        ]

    @property
    def inputs(self) -> list[Path]:
        """The first image; none in S3, which all nodes see."""
        images = [] if self._is_remote else sorted(filter(_is_image, self._stamps))
        return [Path(self.address, path) for path in images[:1]]

    def stamp(self, path: str) -> str | None:
        """Return a text that changes when the file does; None where there is no such file."""
        return self._stamps.get(path)

    def read(self, path: str) -> bytes:
        """Return the bytes of the image, as `Source`."""
        try:
            if self._is_remote:
                with errors_explained(path):
                    content: bytes = self._remote.cat_file(f"{self.address}/{path}")
                    return content
            return Path(self.address, path).read_bytes()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from None
        except DiptychError as error:
            raise SourceError(str(error)) from None

    @cached_property
    def _stamps(self) -> dict[str, str]:
        return dict(self._list_remote() if self._is_remote else self._list_folder())

    def _list_folder(self) -> Iterator[tuple[str, str]]:
        if not Path(self.address).is_dir():
            raise DiptychError(f"The folder of the images, {self.address}, does not exist.")
        for folder, _, names in os.walk(self.address, onerror=_refuse):
            for path in (Path(folder, name) for name in names):
                state = _state(path)
                if state is not None and stat.S_ISREG(state.st_mode):
                    yield str(path.relative_to(self.address)), f"{state.st_size} {state.st_mtime_ns}"

    def _list_remote(self) -> Iterator[tuple[str, str]]:
        root = self.address.removeprefix(S3) + "/"
        with errors_explained(f"The collection {self.address}"):
            objects = self._remote.find(root, detail=True)
        for key, info in objects.items():
            if info["type"] == "file" and key.startswith(root) and not key.endswith("/"):
                yield key.removeprefix(root), f"{info['size']} {info['ETag']}"


def make_item(path: str, content: Any, captions: tuple[str, ...], attributes: Mapping[str, Value | None]) -> Item:
    """Return an item whose stamp changes with its `content`, which is JSON, its captions and its attributes."""
    stamp = hashlib.sha256(json.dumps([content, captions, attributes], sort_keys=True).encode()).hexdigest()
    return Item(path, stamp, captions, attributes)


def _is_image(path: str) -> bool:
    pure = PurePosixPath(path)
    return pure.suffix.lower() in USUAL_SUFFIXES and not any(part.startswith(".") for part in pure.parts)


def _state(path: Path) -> os.stat_result | None:
    """Return the state of a file or link; None where it has gone meanwhile."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _refuse(error: OSError) -> None:
    raise DiptychError(f"{error.filename} cannot be read: {error.strerror}.")
