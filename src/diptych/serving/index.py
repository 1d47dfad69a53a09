"""The index of a collection by one model, opened to be searched."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diptych.errors import DiptychError, is_disk_full
from diptych.files import atomic_path, remove
from diptych.serving.collections import open_source
from diptych.serving.sources import Source, SourceError
from diptych.serving.store import ALL_ROWS, IndexState, Store, table_name

_DETAILS = ("path", "hash", "captions", "attributes", "width", "height")


class IndexGoneError(DiptychError):
    """An index that was removed while it was read."""


class Record(NamedTuple):
    """An image in the index."""

    path: str
    hash: str
    captions: list[str]
    attributes: dict[str, Any]
    width: int
    height: int


class Index:
    """The complete version of an index; it stays as it is while newer ones are made.

    Attributes:
        store: the store that it is in.
        collection: name of the collection.
        model: SHA-256 of the model's files.
        state: what is known of this version.
        vectors: embeddings and, as one more dimension, negative biases: float32 (N, d + 1), mapped from a file. The
            inner product with a query's embedding and 1 is the cosine minus the image's bias.
        details: all columns but the large ones, N rows, mapped from a file.
    """

    def __init__(self, store: Store, collection: str, model: str, state: IndexState, table: Any) -> None:
        self.store, self.collection, self.model, self.state = store, collection, model, state
        self._table = table
        self.details, self.vectors = self._mapped()

    @classmethod
    def open(cls, store: Store, collection: str, model: str) -> Index:
        """Open the version that is complete.

        Raises:
            DiptychError: there is none, the collection has changed since, or the index is damaged.
        """
        state, latest = store.state(collection, model), store.collection(collection)
        advice = f"Run `diptych index --collection {collection}`."
        if state is None or latest is None:
            raise DiptychError(
                f"The collection {collection} is not indexed with the model {table_name(model)}. {advice}"
            )
        if state.fingerprint != latest.fingerprint and state.scanned < latest.scanned:
            raise DiptychError(
                f"The index of {collection} with the model {table_name(model)} is older than the collection. {advice}"
            )
        try:
            table = store.database(collection).open_table(table_name(model))
            table.checkout(state.version)
            if table.count_rows() != state.images:
                raise ValueError(f"{table.count_rows()} rows in place of {state.images}")
            return cls(store, collection, model, state, table)
        except Exception as error:  # LanceDB has no class of its own for a damaged table
            if is_disk_full(error):
                raise
            raise DiptychError(f"The index of {collection} is damaged ({error}). {advice}") from None

    def __len__(self) -> int:
        return self.state.images

    @cached_property
    def attributes(self) -> pa.Table:
        """The attributes of all images, N rows."""
        if "attributes" not in self.details.column_names:
            return pa.table({})
        column = self.details["attributes"].combine_chunks()
        return pa.Table.from_arrays(column.flatten(), names=[field.name for field in column.type])

    @cached_property
    def values(self) -> dict[str, list[str] | None]:
        """The values of each attribute, sorted, as filters take them; None where it is a number."""
        values: dict[str, list[str] | None] = {}
        for name in self.attributes.column_names:
            column = self.attributes[name]
            if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
                values[name] = None
            elif pa.types.is_boolean(column.type):
                values[name] = ["false", "true"]
            else:
                values[name] = sorted(pc.unique(column.drop_null()).to_pylist())
        return values

    def _mapped(self) -> tuple[pa.Table, NDArray[np.float32]]:
        """Return details and vectors, mapped from a local copy that processes share; a damaged copy is rebuilt."""
        folder = self._copied()
        try:
            return self._open_copy(folder)
        except (OSError, EOFError, ValueError, pa.ArrowException):
            remove(folder)
            return self._open_copy(self._copied())

    def _open_copy(self, folder: Path) -> tuple[pa.Table, NDArray[np.float32]]:
        with pa.memory_map(str(folder / "details.arrow")) as file:
            details = pa.ipc.open_file(file).read_all().combine_chunks()
        # Mapped for copy on write, of which torch does not warn; nothing writes to it.
        vectors: NDArray[np.float32] = np.load(folder / "vectors.npy", mmap_mode="c")
        if len(details) != len(self) or vectors.shape != (len(self), self.state.dim + 1):
            raise ValueError(f"{folder} is not of this index")
        return details, vectors

    def _copied(self) -> Path:
        """Return the folder of the local copy, made if it is missing."""
        name = f"{self.collection}-{table_name(self.model)}"
        folder = self.store.versions / f"{name}-{self.state.build}"
        if not folder.exists():
            with atomic_path(folder, shared=True) as temporary:
                temporary.mkdir()
                self._write_vectors(temporary / "vectors.npy")
                self._write_details(temporary / "details.arrow")
            # A server that still maps the files of an older version keeps them until it closes them.
            for other in [*folder.parent.glob(f"{name}-*"), *folder.parent.glob(f".{name}-*.tmp")]:
                if other != folder:
                    remove(other)
        return folder

    def _write_vectors(self, path: Path) -> None:
        shape = (len(self), self.state.dim + 1)
        vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for batch in self._table.search().select(["embedding"]).limit(ALL_ROWS).to_batches():
            values = batch["embedding"].flatten().to_numpy().reshape(-1, shape[1])
            vectors[start : start + len(values)] = values
            start += len(values)
        vectors.flush()

    def _write_details(self, path: Path) -> None:
        names = [name for name in _DETAILS if name in self._table.schema.names]
        # One batch can be mapped without a copy.
        details = self._table.search().select(names).limit(ALL_ROWS).to_arrow().combine_chunks()
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, details.schema) as writer:
            writer.write_table(details)

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """The hashes, and the order that sorts them; rows of equal ones keep theirs."""
        hashes = np.array(self.details["hash"].to_pylist(), "S64")
        return hashes, hashes.argsort(kind="stable")

    def row_of(self, digest: str) -> int | None:
        """Return the first row of an image whose file has this SHA-256; None where there is none."""
        hashes, order = self._by_hash
        wanted = np.bytes_(digest.encode("ascii", "replace"))
        position = int(np.searchsorted(hashes, wanted, sorter=order))
        found = position < len(order) and hashes[order[position]] == wanted
        return int(order[position]) if found else None

    def records(self, rows: NDArray[np.int64]) -> list[Record]:
        """Return the images of the rows, in their order."""
        return [Record(**{"attributes": {}, **values}) for values in self.details.take(rows).to_pylist()]

    def thumbnail(self, row: int) -> bytes:
        """Return a small JPEG of an image."""
        content: bytes = self._take(np.array([row]), ["thumbnail"])["thumbnail"][0].as_py()
        return content

    def grids(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the grid tokens of images, float16 (n, G, d)."""
        if self.state.grid is None:
            raise DiptychError(f"The index of {self.collection} has no grid tokens: index it with --rerank.")
        column = self._take(rows, ["grid"])["grid"].combine_chunks()
        grids: NDArray[np.float16] = column.values.to_numpy().reshape(len(rows), *self.state.grid)
        return grids

    def original(self, record: Record) -> bytes:
        """Return the image file of a record.

        Raises:
            SourceError: it is gone, cannot be read, or has changed since it was indexed.
        """
        content = self._source.read(record.path)
        if hashlib.sha256(content).hexdigest() != record.hash:
            raise SourceError(f"{record.path} has changed since it was indexed.")
        return content

    @cached_property
    def _source(self) -> Source:
        state = self.store.collection(self.collection)
        if state is None:
            raise DiptychError(f"The collection {self.collection} is gone.")
        return open_source(state.source, self.store.data)

    def _take(self, rows: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Return columns of the rows, in their order."""
        # LanceDB returns each row once, ascending.
        distinct, inverse = np.unique(rows, return_inverse=True)
        try:
            table = self._table.take_offsets(distinct.tolist()).select(columns).to_arrow()
        except Exception:  # LanceDB has no class of its own for a table that has gone
            raise IndexGoneError(f"The index of {self.collection} is not there any more.") from None
        return table.take(pa.array(inverse))
