"""Collections: sets of images to search, in the dataset, in a folder, in S3, or listed in a table with attributes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from diptych.data.captions import encodable, read_dataset
from diptych.data.shards import Member, list_members, read_member
from diptych.data.tables import USUAL_SUFFIXES
from diptych.errors import DiptychError, printable, some
from diptych.remote import S3, errors_explained, file_system

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

DATASET = "dataset"
"""Name of the collection of the project's own images."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ATTRIBUTE = re.compile(r"[^\W\d]\w{0,63}")
_CAPTION = re.compile(r"caption(?:[ _.-]?\d+)?")
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
        self._data, self._split = data, split

    @cached_property
    def _members(self) -> dict[str, Member]:
        return {member.name: member for member in list_members(self._data)}

    def items(self) -> list[Item]:
        """Return the images, as `Source`; those of one content have the hash of it as stamp."""
        dataset = read_dataset(self._data)
        captions = defaultdict(list)
        for annotation in dataset.annotations:
            if isinstance(annotation["caption"], str):
                captions[annotation["image_id"]].append(annotation["caption"])
        found = []
        for record in dataset.images:
            split = str(record.get("split") or "")
            name = record["file_name"]
            if name in self._members and self._split in ("", split):
                texts = tuple(captions[record["id"]])
                content = record.get("sha256") or vars(self._members[name])
                found.append(_item(name, content, texts, {"split": split}))
        if self._split and not found:
            splits = sorted({str(record.get("split")) for record in dataset.images})
            raise DiptychError(f"The dataset has no split {self._split!r}: it has {some(splits)}.")
        return sorted(found, key=lambda item: item.path)

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
            _item(path, stamp, (), {"folder": str(PurePosixPath(path).parent)})
            for path, stamp in sorted(images.items())
        ]

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


class TableSource(Source):
    """The image files that a CSV or Parquet table lists, with captions and attributes.

    The column `file` has their paths within the folder or S3 prefix `files`. Columns such as `caption` and `caption 2`
    have captions, and all others are attributes.
    """

    def __init__(self, table: Path, files: str | None = None) -> None:
        self._table = table.absolute()
        self._files = FilesSource(files or str(self._table.parent))
        self.description = {"kind": "table", "table": str(self._table), "files": self._files.address}

    def items(self) -> list[Item]:
        """Return the images, as `Source`."""
        table = _read_table(self._table)
        if table.column_names.count("file") != 1:
            raise DiptychError(f"{self._table} needs one column `file`: it has {some(table.column_names)}.")
        is_caption = {name: bool(_CAPTION.fullmatch(name.lower())) for name in table.column_names if name != "file"}
        attributes = [name for name, caption in is_caption.items() if not caption]
        _check_attributes(self._table, table, attributes)
        found: dict[str, Item] = {}
        for row, values in enumerate(_rows(self._table, table), start=1):
            path = self._checked_path(values["file"], row)
            if path in found:
                raise DiptychError(f"{self._table}: row {row} names {path} a second time; keep one row for a file.")
            texts = tuple(str(values[name]) for name, caption in is_caption.items() if caption and values[name])
            stamp = self._files.stamp(path)
            found[path] = _item(path, stamp, texts, {name: _plain(values[name]) for name in attributes})
        return sorted(found.values(), key=lambda item: item.path)

    def read(self, path: str) -> bytes:
        """Return the bytes of the image, as `Source`."""
        return self._files.read(path)

    def _checked_path(self, value: Any, row: int) -> str:
        path = PurePosixPath(str(value or ""))
        if not value or path.is_absolute() or ".." in path.parts:
            raise DiptychError(
                f"{self._table}: row {row} has the file {printable(str(value))!r}, which is no path within "
                f"{self._files.address}."
            )
        if self._files.stamp(str(path)) is None:
            raise DiptychError(f"{self._table}: row {row} names {path}, which is not in {self._files.address}.")
        return str(path)


def open_source(description: Mapping[str, str], data: Path) -> Source:
    """Return the source of a description that `Source.description` gave; `data` is the folder of the dataset."""
    match description:
        case {"kind": "dataset", "split": split}:
            return DatasetSource(data, split)
        case {"kind": "files", "address": address}:
            return FilesSource(address)
        case {"kind": "table", "table": table, "files": files}:
            return TableSource(Path(table), files)
    raise DiptychError(f"A collection is described by {description}, which this diptych does not know.")


def fingerprint(items: list[Item]) -> str:
    """Return a SHA-256 that changes when any image of a collection, caption or attribute does."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.path, item.stamp]).encode())
    return digest.hexdigest()


def _state(path: Path) -> os.stat_result | None:
    """Return the state of a file or link; None where it has gone meanwhile."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _refuse(error: OSError) -> None:
    raise DiptychError(f"{error.filename} cannot be read: {error.strerror}.")


def _item(path: str, content: Any, captions: tuple[str, ...], attributes: Mapping[str, Value | None]) -> Item:
    stamp = hashlib.sha256(json.dumps([content, captions, attributes], sort_keys=True).encode()).hexdigest()
    return Item(path, stamp, captions, attributes)


def _is_image(path: str) -> bool:
    pure = PurePosixPath(path)
    return pure.suffix.lower() in USUAL_SUFFIXES and not any(part.startswith(".") for part in pure.parts)


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        # A name such as 007.jpg stays a text, whatever the others look like.
        texts = csv.ConvertOptions(column_types={"file": pa.string()})
        return parquet.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path, convert_options=texts)
    except (OSError, pa.ArrowException) as error:
        raise DiptychError(f"{path} is not a CSV or Parquet table: {error}") from None


def _rows(path: Path, table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except Exception as error:  # dates out of range and unknown time zones have errors of their own
        raise DiptychError(f"{path} has a value that cannot be read: {error}.") from None
    return rows


def _check_attributes(path: Path, table: pa.Table, names: list[str]) -> None:
    from pyarrow import types

    if repeated := sorted({name for name in names if table.column_names.count(name) > 1}):
        raise DiptychError(f"{path} has more than one column {some(repeated)}.")
    for name in names:
        if not ATTRIBUTE.fullmatch(name):
            raise DiptychError(f"{path}: the column {name!r} cannot be an attribute: use letters, digits and _.")
        kind = table.schema.field(name).type
        if types.is_uint64(kind):
            raise DiptychError(f"{path}: the column {name} has the type uint64; int64 is needed.")
        is_plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
        if not any(test(kind) for test in (*is_plain, types.is_date, types.is_timestamp, types.is_null)):
            raise DiptychError(
                f"{path}: the column {name} has the type {kind}; attributes are texts, numbers or dates."
            )


def _plain(value: Any) -> Value | None:
    """Return a value as JSON has it; dates as text, whose order is theirs."""
    return value.isoformat() if isinstance(value, date) else value
