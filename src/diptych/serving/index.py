"""The index of a collection by one model, opened to be searched."""

from __future__ import annotations

import hashlib
import logging
import math
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
from diptych.serving.partitions import APPROXIMATE_FROM, nearest_ids
from diptych.serving.sources import Source, SourceError
from diptych.serving.store import ALL_ROWS, IndexState, Store, table_name

log = logging.getLogger(__name__)

_DEEPEST = 100
"""Number of results up to which search may be approximate. Recall is measured on the first ten, and re-ranking reads
some more; beyond them search has the time to be exact."""
_SPARE = 2
"""Candidates that pass a filter, on average, for each result."""
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
        self.details, self.vectors, self._row_ids = self._mapped()

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

    def nearest(
        self, query: NDArray[np.float32], k: int, *, among: NDArray[np.int64] | None = None, probes: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the images that are nearest to a query (d + 1,): rows and inner products, largest first.

        Args:
            query: an embedding, followed by 1 where biases count and by 0 where they do not.
            k: number of images.
            among: rows to choose from, ascending; None: all.
            probes: number of partitions to read. None searches exactly, and so does k above `_DEEPEST`.
        """
        # They take seconds to import, which reading an index has no need of.
        import torch

        from diptych.retrieval.reranking import top_candidates

        rows = among if probes is None or k > _DEEPEST else self._candidates(query, k, among, probes)
        vectors = self.vectors if rows is None else self.vectors[rows]
        found = top_candidates(torch.from_numpy(query)[None], torch.from_numpy(vectors), k)
        position, product = (part[0].numpy() for part in found)
        return (position if rows is None else rows[position]), product

    def _candidates(
        self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None, probes: int
    ) -> NDArray[np.int64] | None:
        """Return rows, ascending, that are likely to have the nearest k; `among` to search all of these exactly."""
        if among is not None and len(among) < APPROXIMATE_FROM:
            return among
        limit = k if among is None else math.ceil(_SPARE * k * len(self) / len(among))
        try:
            ids = nearest_ids(self._table, query, probes, limit)
        except Exception as error:  # LanceDB has no class of its own for a table that has gone
            log.warning("The partitions of %s cannot be read, so search is exact: %s", self.collection, error)
            return among
        rows = np.sort(self._by_id[np.searchsorted(self._row_ids, ids, sorter=self._by_id)])
        if among is not None:
            rows = rows[among[np.searchsorted(among, rows).clip(max=len(among) - 1)] == rows]
        # Filters may pass images that are far from the query alone.
        return rows if len(rows) >= k else among

    @cached_property
    def _by_id(self) -> NDArray[np.int64]:
        """The order that sorts Lance's ids of the rows."""
        return self._row_ids.argsort()

    def _mapped(self) -> tuple[pa.Table, NDArray[np.float32], NDArray[np.uint64]]:
        """Return details, vectors and Lance's row ids from a local copy that processes share, rebuilt if damaged."""
        folder = self._copied()
        try:
            return self._open_copy(folder)
        except (OSError, EOFError, ValueError, pa.ArrowException):
            remove(folder)
            return self._open_copy(self._copied())

    def _open_copy(self, folder: Path) -> tuple[pa.Table, NDArray[np.float32], NDArray[np.uint64]]:
        with pa.memory_map(str(folder / "details.arrow")) as file:
            details = pa.ipc.open_file(file).read_all().combine_chunks()
        # Mapped for copy on write, of which torch does not warn; nothing writes to it.
        vectors: NDArray[np.float32] = np.load(folder / "vectors.npy", mmap_mode="c")
        row_ids: NDArray[np.uint64] = np.load(folder / "row_ids.npy", mmap_mode="r")
        if not len(details) == len(row_ids) == len(self) or vectors.shape != (len(self), self.state.dim + 1):
            raise ValueError(f"{folder} is not of this index")
        return details, vectors, row_ids

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
        row_ids = np.zeros(len(self), np.uint64)
        start = 0
        for batch in self._table.search().select(["embedding"]).with_row_id(True).limit(ALL_ROWS).to_batches():
            rows = slice(start, start + len(batch))
            vectors[rows] = batch["embedding"].flatten().to_numpy().reshape(-1, shape[1])
            row_ids[rows] = batch["_rowid"].to_numpy()
            start += len(batch)
        vectors.flush()
        np.save(path.with_name("row_ids.npy"), row_ids)

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
