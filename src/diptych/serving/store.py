"""The store of indexes: a folder, or a prefix in S3, with a LanceDB database for each collection.

A database has a table for each model that the collection was indexed with. A JSON file next to a table names its
complete version: what a killed process has added is no part of a version that is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from diptych.errors import DiptychError
from diptych.files import remove, write_json
from diptych.remote import S3, errors_explained, file_system
from diptych.serving.collections import NAME

COLLECTION = "collection"
"""File name, without suffix, of the description of a collection."""

MIN_RECALL = 0.98
"""Smallest recall@10 of approximate search, unless a collection says otherwise."""
ALL_ROWS = 2**31
"""Limit of a query of a Lance table that has none."""


class CollectionBusyError(DiptychError):
    """Another process changes the collection."""


class _Stored(BaseModel):
    """JSON in the store; it is written by programs alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_State = TypeVar("_State", bound=_Stored)


class CollectionState(_Stored):
    """The collection as it was when it was last indexed with any model."""

    source: dict[str, str]
    """Description of its source."""
    fingerprint: str
    """Hash of its images, captions and attributes."""
    scanned: float
    """Time at which it was scanned, in seconds since 1970."""
    rerank: bool | None = None
    """True if its indexes keep what re-ranking reads; None if only those of models that re-rank do."""
    min_recall: float = MIN_RECALL
    """Smallest recall@10 of approximate search, from 0 to 1; 1: search is exact."""


class ApproximateSearch(_Stored):
    """How a large index is searched."""

    partitions: int
    """Number of parts that its images are divided into by their embeddings."""
    probes: int | None
    """Number of partitions that a search reads; None: search is exact, because half of them find too little."""
    recall: float
    """Share of the first ten results of exact search that is found, for captions of training without filters; without
    `probes`, by half of the partitions."""
    min_recall: float
    """Smallest recall that was asked for."""


class IndexState(_Stored):
    """The complete version of the index of one model."""

    version: int
    """Version of the Lance table."""
    build: str
    """Name of this version that no other one has, also after a table was made anew."""
    images: int
    dim: int
    """Size of an embedding, without the bias that follows it."""
    grid: tuple[int, int] | None
    """Number and size of the grid tokens of an image; None where none are kept."""
    fingerprint: str
    """Fingerprint of the collection that was indexed."""
    scanned: float
    """Time at which the collection was scanned, in seconds since 1970."""
    unreadable: int
    """Number of images of the collection that cannot be decoded, and are left out."""
    approximate: ApproximateSearch | None = None
    """How it is searched; None: exactly."""


class Store:
    """The indexes at `address`, a folder or s3://bucket/prefix.

    Attributes:
        local: folder for local copies.
        data: folder of the dataset, which is a collection too.
    """

    def __init__(self, address: str, local: Path, data: Path) -> None:
        self.address = address.rstrip("/")
        self.local, self.data = local, data
        self.is_remote = address.startswith(S3)

    @property
    def versions(self) -> Path:
        """Folder with local copies of what searches read."""
        return self.local / "versions"

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        if self.is_remote:
            with errors_explained(f"The indexes in {self.address}"):
                paths = self._files.glob(f"{self.address}/*/{COLLECTION}.json")
        else:
            paths = map(str, Path(self.address).glob(f"*/{COLLECTION}.json"))
        return sorted(path.split("/")[-2] for path in paths)

    def collection(self, name: str) -> CollectionState | None:
        """Return the state of a collection; None where it was never indexed."""
        return self._read(CollectionState, name, COLLECTION)

    def state(self, collection: str, model: str) -> IndexState | None:
        """Return the state of the index of the model with this SHA-256; None where there is none."""
        return self._read(IndexState, collection, table_name(model))

    def write_collection(self, name: str, state: CollectionState) -> None:
        """Replace the state of a collection."""
        self._write(name, COLLECTION, state)

    def write_state(self, collection: str, model: str, state: IndexState) -> None:
        """Make a version of the table the one that is read."""
        self._write(collection, table_name(model), state)

    def database(self, collection: str) -> Any:
        """Return the `lancedb.DBConnection` of a collection."""
        import lancedb

        address = self._path(collection)
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        options = {"allow_http": "true"} if self.is_remote and endpoint.startswith("http:") else None
        return lancedb.connect(address, storage_options=options)

    @contextmanager
    def held(self, collection: str) -> Iterator[None]:
        """Keep other processes from changing a collection while the block runs; those of this machine, if it is in S3.

        Raises:
            CollectionBusyError: another process changes it.
        """
        self._path(collection)
        folder = self.local if self.is_remote else Path(self.address)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{collection}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise CollectionBusyError(
                f"The collection {collection} is being indexed by another process. Wait for it, or stop it."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def has(self, collection: str) -> bool:
        """Return whether there is anything of a collection, whole or damaged."""
        path = self._path(collection)
        if self.is_remote:
            with errors_explained(path):
                return bool(self._files.exists(path))
        return Path(path).exists()

    def remove(self, collection: str) -> None:
        """Remove a collection with all its indexes, and their local copies."""
        for copied in self.versions.glob(f"{collection}-*"):
            remove(copied)
        if self.is_remote:
            with errors_explained(f"The indexes in {self.address}"), suppress(FileNotFoundError):
                self._files.rm(self._path(collection), recursive=True)
        else:
            remove(Path(self._path(collection)))

    @property
    def _files(self) -> Any:
        return file_system("A store of indexes")

    def _path(self, *names: str) -> str:
        if not NAME.fullmatch(names[0]):
            raise DiptychError(
                f"{names[0]!r} cannot name a collection: it may have letters, digits and, after the first character, "
                ". _ -"
            )
        return "/".join((self.address, *names))

    def _read(self, kind: type[_State], collection: str, name: str) -> _State | None:
        path = self._path(collection, f"{name}.json")
        try:
            if self.is_remote:
                with errors_explained(path):
                    text = self._files.cat_file(path) if self._files.exists(path) else None
            else:
                text = Path(path).read_bytes() if Path(path).exists() else None
            return kind.model_validate_json(text) if text is not None else None
        except ValidationError as error:
            raise DiptychError(
                f"{path} is damaged ({error.errors()[0]['msg']}). Remove it and run "
                f"`diptych index --collection {collection}`, which makes it again."
            ) from None

    def _write(self, collection: str, name: str, state: _Stored) -> None:
        path = self._path(collection, f"{name}.json")
        # Defaults are left out, so that earlier versions of diptych read what they know.
        content = state.model_dump(exclude_defaults=True)
        if self.is_remote:
            with errors_explained(path):
                self._files.pipe_file(path, json.dumps(content).encode())
        else:
            write_json(Path(path), content)


def table_name(model: str) -> str:
    """Return the name of the table of the model with this SHA-256."""
    return model[:16]
