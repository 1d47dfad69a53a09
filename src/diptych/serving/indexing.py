"""Indexing: the images of a collection, embedded by a model, become the rows of its Lance table.

Only images that are new by content are embedded. Rows are added in batches, so a run that was killed goes on where it
was; what is read is the version before until the new one is complete.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from diptych.data.images import ImageError, open_image, to_pixels
from diptych.errors import DiptychError
from diptych.progress import progress
from diptych.retriever import MAX_PIXELS
from diptych.serving.collections import Item, Source, fingerprint
from diptych.serving.store import CollectionState, IndexState, Store, table_name

if TYPE_CHECKING:
    from diptych.retriever import Retriever

log = logging.getLogger(__name__)
T = TypeVar("T")

THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""
_BATCH = 512
"""Images of a commit: after a kill at most these are embedded again."""
_DELETED_AT_ONCE = 10_000
_EXAMPLES = 3
_KEPT_VERSIONS = timedelta(days=1)
"""Time for which a server can go on with a version that was replaced."""
_ALL = 2**31
"""Limit of a query that has none."""


class IndexSummary(NamedTuple):
    """Outcome of an indexing."""

    state: IndexState
    embedded: int
    """Number of images that the model encoded."""
    known: int
    """Number of new names of images whose content was known, and of images whose captions or attributes changed."""
    removed: int
    """Number of images that left the index."""
    unreadable: list[tuple[str, str]]
    """Path and reason of each image that cannot be decoded."""

    def describe(self) -> str:
        """Return a clause for people."""
        left_out = f", {len(self.unreadable):,} left out as unreadable" if self.unreadable else ""
        return (
            f"{self.state.images:,} images indexed: {self.embedded:,} embedded, {self.known:,} of known content, "
            f"{self.removed:,} rows removed{left_out}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        counts = {"embedded": self.embedded, "known": self.known, "removed": self.removed}
        return {**self.state.model_dump(), **counts, "unreadable": [*map(list, self.unreadable)]}


class _Picture(NamedTuple):
    """What the index needs of an image's pixels."""

    width: int
    height: int
    thumbnail: bytes
    pixels: Image.Image
    """In the size that the model reads."""


class _Read(NamedTuple):
    """An image file that was read. Its content is known to the index, or it has a picture, or an error."""

    item: Item
    hash: str
    picture: _Picture | None = None
    error: str = ""
    """Reason why the file cannot be decoded."""


def update_index(
    store: Store, collection: str, source: Source, retriever: Retriever, model: str, *, rerank: bool | None = None
) -> IndexSummary:
    """Bring the index of a collection up to date, and make it the version that is read.

    Args:
        store: the store of indexes.
        collection: name of the collection.
        source: its images.
        retriever: the model to embed with.
        model: SHA-256 of its files.
        rerank: whether to keep the grid tokens that re-ranking reads; None: if the model re-ranks.

    Raises:
        DiptychError: another process indexes the collection, its source cannot be read, or none of its images can.
    """
    with store.held(collection):
        items = source.items()
        if not items:
            raise DiptychError(f"The collection {collection} has no images: {source.description} lists none.")
        return _Update(store, collection, source, retriever, model, rerank=rerank).run(items)


class _Update:
    """One update of the index of one model."""

    def __init__(
        self, store: Store, collection: str, source: Source, retriever: Retriever, model: str, *, rerank: bool | None
    ) -> None:
        self._store, self._collection, self._source, self._model = store, collection, source, model
        self._retriever = retriever
        self._dim = int(retriever.query_bank.image.shape[1])
        tokens = retriever.model.image_tower.grid_size
        self._rerank = rerank
        self._grid = (tokens, self._dim) if (any(retriever.weights.t2i) if rerank is None else rerank) else None
        self._unreadable: list[tuple[str, str]] = []
        self._embedded = self._known = 0

    def run(self, items: list[Item]) -> IndexSummary:
        """Index the collection whose images are `items`."""
        mark = fingerprint(items)
        self._schema = self._make_schema(items)
        table, rows = self._open()
        by_path = {item.path: item for item in items}
        kept, gone = {}, []
        for row, path, stamp in zip(rows["_rowid"], rows["path"], rows["stamp"], strict=True):
            item = by_path.get(path)
            if item is None or item.stamp != stamp or path in kept:
                gone.append(row)
            else:
                kept[path] = row
        new = [item for item in items if item.path not in kept]
        self._add(table, new, set(rows["hash"]))
        for some in _batches(gone, _DELETED_AT_ONCE):
            table.delete(f"_rowid IN ({', '.join(map(str, some))})")
        if not table.count_rows():
            path, reason = self._unreadable[0]
            raise DiptychError(f"No image of the collection {self._collection} can be read: {path}: {reason}.")
        if new or gone:
            table.optimize(cleanup_older_than=_KEPT_VERSIONS)
        state = self._publish(table, mark)
        return IndexSummary(state, self._embedded, self._known, len(gone), self._unreadable)

    def _publish(self, table: Any, mark: str) -> IndexState:
        """Make the latest version of the table the one that is read."""
        state = IndexState(
            version=table.version,
            images=table.count_rows(),
            dim=self._dim,
            grid=self._grid,
            fingerprint=mark,
            unreadable=len(self._unreadable),
        )
        self._store.write_state(self._collection, self._model, state)
        collection = CollectionState(source=self._source.description, fingerprint=mark, rerank=self._rerank)
        self._store.write_collection(self._collection, collection)
        return state

    def _open(self) -> tuple[Any, dict[str, list[Any]]]:
        """Return the table and its rows; an empty one where there is none, it is damaged, or its columns are others."""
        database, name = self._store.database(self._collection), table_name(self._model)
        if name in database.list_tables().tables:
            try:
                table = database.open_table(name)
                if table.schema.equals(self._schema):
                    return table, _identities(table)
                log.info("%s has other columns now, so its index is made anew.", self._collection)
            except Exception as error:  # LanceDB has no class of its own for a damaged table
                log.warning("The index of %s is damaged (%s), so it is made anew.", self._collection, error)
                database.drop_table(name, ignore_missing=True)
        table = database.create_table(name, schema=self._schema, mode="overwrite")
        return table, _identities(table)

    def _add(self, table: Any, items: Sequence[Item], known: set[str]) -> None:
        """Add rows for `items`; images whose hash is among the `known` ones are not embedded again."""
        with (
            progress(None, "index", unit="images", total=len(items), disable=not items) as bar,
            ThreadPoolExecutor() as pool,
        ):
            for batch in _batches(items, _BATCH):
                read = list(pool.map(partial(self._read, known=known), batch))
                self._unreadable += [(one.item.path, one.error) for one in read if one.error]
                new = [one for one in read if one.picture]
                if (rows := pa.concat_tables([self._copied(table, read, known), self._encoded(new)])).num_rows:
                    table.add(rows)
                known |= {one.hash for one in new}
                bar.update(len(batch))

    def _read(self, item: Item, known: set[str]) -> _Read:
        content = self._source.read(item.path)
        digest = hashlib.sha256(content).hexdigest()
        if digest in known:
            return _Read(item, digest)
        settings = self._retriever.preprocessing
        try:
            image = open_image(content, MAX_PIXELS)
        except ImageError as error:
            return _Read(item, digest, error=str(error))
        pixels = Image.fromarray(to_pixels(image, settings.image_size, settings.resize))
        return _Read(item, digest, _Picture(image.width, image.height, _thumbnail(image), pixels))

    def _copied(self, table: Any, read: Iterable[_Read], known: set[str]) -> pa.Table:
        """Return rows for images of known content, with what the table has of it."""
        from lancedb.expr import col

        wanted = [one for one in read if one.hash in known]
        if not wanted:
            return self._schema.empty_table()
        found = table.search().where(col("hash").isin([one.hash for one in wanted])).limit(_ALL).to_arrow()
        position = {digest: row for row, digest in enumerate(found["hash"].to_pylist())}
        self._known += len(wanted)
        copied = found.take([position[one.hash] for one in wanted])
        for name, column in self._columns_of(wanted).items():
            copied = copied.set_column(copied.schema.get_field_index(name), self._schema.field(name), column)
        return copied.cast(self._schema)

    def _encoded(self, new: Sequence[_Read]) -> pa.Table:
        """Return rows for images of new content."""
        pictures = {one.hash: one.picture for one in new if one.picture}
        if not pictures:
            return self._schema.empty_table()
        images = [picture.pixels for picture in pictures.values()]
        encoded = self._retriever.encode_images(images, tokens=self._grid is not None)
        self._embedded += len(images)
        position = {digest: row for row, digest in enumerate(pictures)}
        rows = np.array([position[one.hash] for one in new])
        columns: dict[str, Any] = self._columns_of(new)
        for name in ("width", "height", "thumbnail"):
            columns[name] = [getattr(pictures[one.hash], name) for one in new]
        columns["embedding"] = _vectors(np.concatenate([encoded.embedding, -encoded.bias[:, None]], axis=1)[rows])
        if encoded.tokens is not None:
            columns["grid"] = _vectors(encoded.tokens.numpy().astype(np.float16)[rows].reshape(len(new), -1))
        return pa.table(columns, schema=self._schema)

    def _columns_of(self, read: Sequence[_Read]) -> dict[str, pa.Array]:
        """Return the columns that belong to a file and not to its content."""
        columns = {
            "path": [one.item.path for one in read],
            "stamp": [one.item.stamp for one in read],
            "hash": [one.hash for one in read],
            "captions": [list(one.item.captions) for one in read],
            "attributes": [dict(one.item.attributes) for one in read],
        }
        names = self._schema.names
        return {name: pa.array(v, self._schema.field(name).type) for name, v in columns.items() if name in names}

    def _make_schema(self, items: Sequence[Item]) -> pa.Schema:
        attributes = pa.Table.from_pylist([dict(item.attributes) for item in items]).schema
        # A column without values could be anything; as text it stays comparable.
        fields = [pa.field(one.name, pa.string() if pa.types.is_null(one.type) else one.type) for one in attributes]
        columns = {
            "path": pa.string(),
            "stamp": pa.string(),
            "hash": pa.string(),
            "captions": pa.list_(pa.string()),
            **({"attributes": pa.struct(fields)} if fields else {}),
            "width": pa.int32(),
            "height": pa.int32(),
            "thumbnail": pa.binary(),
            "embedding": pa.list_(pa.float32(), self._dim + 1),
        }
        if self._grid:
            columns["grid"] = pa.list_(pa.float16(), self._grid[0] * self._grid[1])
        return pa.schema(columns)


def _identities(table: Any) -> dict[str, list[Any]]:
    """Return what tells the rows of a table apart."""
    columns: dict[str, list[Any]] = (
        table.search().select(["path", "stamp", "hash"]).with_row_id(True).limit(_ALL).to_arrow().to_pydict()
    )
    return columns


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _thumbnail(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return content.getvalue()


def _vectors(values: np.ndarray[Any, Any]) -> pa.FixedSizeListArray:
    """Return the rows of a matrix as an Arrow column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
