"""Indexing: the images of a collection, embedded by a model, become the rows of its Lance table.

Only images that are new by content are embedded. Rows are added in batches, so a run that was killed goes on where it
was; what is read is the version before until the new one is complete.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import uuid4

import pyarrow as pa

from diptych.data.cluster import is_in_use, need_of
from diptych.data.parallel import map_shards
from diptych.errors import DiptychError
from diptych.progress import progress
from diptych.serving.approximate import LEAST_TEXTS, choose_probes
from diptych.serving.collections import fingerprint
from diptych.serving.encoding import EncodedFiles, FileEncoder, content_schema
from diptych.serving.index import Index
from diptych.serving.partitions import APPROXIMATE_FROM, FOREVER, create_partitions, drop_partitions
from diptych.serving.sources import Item, Source
from diptych.serving.store import (
    ALL_ROWS,
    MIN_RECALL,
    ApproximateSearch,
    CollectionState,
    IndexState,
    Store,
    table_name,
)

if TYPE_CHECKING:
    from diptych.retriever import Retriever

log = logging.getLogger(__name__)
T = TypeVar("T")

_BATCH = 512
"""Images of a commit, and of a task: after a kill at most those of the tasks that run are embedded again."""
_DELETED_AT_ONCE = 10_000
_EXAMPLES = 3
_KEPT_SECONDS = 3600.0
"""Time for which a version that was replaced is kept at least, for servers that still read it."""
_MARGIN = timedelta(seconds=1)


class IndexSummary(NamedTuple):
    """Outcome of an indexing."""

    state: IndexState
    collection: CollectionState
    """The collection as it was scanned, for `announce`."""
    unchanged: int
    """Number of images that were in the index as they are."""
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
            f"{self.state.images:,} images indexed: {self.unchanged:,} unchanged, {self.embedded:,} embedded, "
            f"{self.known:,} of known content, {self.removed:,} rows removed{left_out}{self._search}"
        )

    @property
    def _search(self) -> str:
        """A clause on approximate search, if the collection is large."""
        approximate = self.state.approximate
        if approximate is None:
            return ""
        if approximate.probes is None:
            return (
                f"; search is exact, because half of the partitions find only {approximate.recall:.1%} of the first "
                f"ten results, and {approximate.min_recall:.1%} are asked for"
            )
        return (
            f"; search reads {approximate.probes:,} of {approximate.partitions:,} partitions and finds "
            f"{approximate.recall:.1%} of the first ten results of exact search"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        counts = {"unchanged": self.unchanged, "embedded": self.embedded, "known": self.known, "removed": self.removed}
        return {**self.state.model_dump(), **counts, "unreadable": [*map(list, self.unreadable)]}


class _Read(NamedTuple):
    """An image file that was read, with its SHA-256."""

    item: Item
    hash: str


def announce(store: Store, collection: str, summary: IndexSummary) -> None:
    """Make an indexed state of a collection the present one: indexes of older states are outdated from now on."""
    store.write_collection(collection, summary.collection)


class _Target(NamedTuple):
    """The index that is to be brought up to date, and what it shall keep."""

    store: Store
    collection: str
    source: Source
    model: str
    """SHA-256 of the model's files."""
    rerank: bool | None
    min_recall: float

    @property
    def state(self) -> IndexState | None:
        """The version that is read."""
        return self.store.state(self.collection, self.model)

    def described(self, fingerprint: str, scanned: float) -> CollectionState:
        """Return the state of the collection that was scanned."""
        return CollectionState(
            source=self.source.description,
            fingerprint=fingerprint,
            scanned=scanned,
            rerank=self.rerank,
            min_recall=self.min_recall,
        )


def update_index(
    store: Store,
    collection: str,
    source: Source,
    model: str,
    load: Callable[[], Retriever],
    *,
    rerank: bool | None = None,
    min_recall: float | None = None,
) -> IndexSummary:
    """Bring the index of a collection up to date, and make it the version of this model that is read.

    Indexes of other models stay as they are until `announce`.

    Args:
        store: the store of indexes.
        collection: name of the collection.
        source: its images.
        model: SHA-256 of the model's files.
        load: returns the model; called only if the index changes, because loading takes longer than looking.
        rerank: whether to keep the grid tokens that re-ranking reads; None: as before, or else if the model re-ranks.
        min_recall: smallest recall@10 of approximate search, from 0 to 1; 1: search is exact; None: as before.

    Raises:
        DiptychError: another process indexes the collection, its source cannot be read, or none of its images can.
    """
    with store.held(collection):
        scanned, items = time.time(), source.items()
        if not items:
            raise DiptychError(f"The collection {collection} has no images: {source.description} lists none.")
        known = store.collection(collection)
        if known is not None:
            rerank = known.rerank if rerank is None else rerank
            min_recall = known.min_recall if min_recall is None else min_recall
        target = _Target(store, collection, source, model, rerank, MIN_RECALL if min_recall is None else min_recall)
        return _confirmed(target, items, scanned) or _Update(target, load(), scanned).run(items)


def _confirmed(target: _Target, items: list[Item], scanned: float) -> IndexSummary | None:
    """Note that an index is still up to date, and return the outcome; None if there is anything to do."""
    state = target.state
    if state is None or state.unreadable or state.fingerprint != fingerprint(items) or not _is_as_asked(state, target):
        return None
    try:
        table = target.store.database(target.collection).open_table(table_name(target.model))
        table.checkout(state.version)
        indexed = _identities(table)
    except Exception:  # LanceDB has no class of its own for a damaged table, and the update says what the matter is
        return None
    if sorted(zip(indexed["path"], indexed["stamp"], strict=True)) != sorted((item.path, item.stamp) for item in items):
        return None
    state = state.model_copy(update={"scanned": scanned})
    target.store.write_state(target.collection, target.model, state)
    return IndexSummary(state, target.described(state.fingerprint, scanned), len(items), 0, 0, 0, [])


def _is_as_asked(state: IndexState, target: _Target) -> bool:
    """Return whether an index of the model keeps what it shall, and is searched as it shall be."""
    if target.rerank is not None and target.rerank != (state.grid is not None):
        return False
    if state.approximate is None:
        return not _may_be_approximate(target, state.images)
    return state.approximate.min_recall == target.min_recall


def _may_be_approximate(target: _Target, images: int) -> bool:
    """Return whether an index of so many images is searched approximately, if that can be measured."""
    # From S3 each search would fetch partitions, while exact search reads a local copy.
    return images >= APPROXIMATE_FROM and target.min_recall < 1 and not target.store.is_remote


class _Update:
    """One update of the index of one model."""

    def __init__(self, target: _Target, retriever: Retriever, scanned: float) -> None:
        self._target, self._retriever, self._scanned = target, retriever, scanned
        self._dim = int(retriever.query_bank.image.shape[1])
        tokens, rerank = retriever.model.image_tower.grid_size, target.rerank
        self._grid = (tokens, self._dim) if (any(retriever.weights.t2i) if rerank is None else rerank) else None
        self._contents = content_schema(self._dim, self._grid)
        self._unreadable: list[tuple[str, str]] = []
        self._tables: list[Any] = []
        self._known_in: dict[str, int] = {}
        """Index in `_tables` of the table from which the content columns of an image can be copied, by its hash."""
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
        self._add(table, new)
        for outdated in _batches(gone, _DELETED_AT_ONCE):
            table.delete(f"_rowid IN ({', '.join(map(str, outdated))})")
        if not table.count_rows():
            path, reason = self._unreadable[0]
            raise DiptychError(f"No image of the collection {self._target.collection} can be read: {path}: {reason}.")
        # Files that cannot be read are tried each time, and change nothing.
        state = self._publish(table, mark)
        collection = self._target.described(mark, self._scanned)
        return IndexSummary(state, collection, len(kept), self._embedded, self._known, len(gone), self._unreadable)

    def _publish(self, table: Any, mark: str) -> IndexState:
        """Make the latest version of the table the one that is read."""
        before = self._target.state
        if before is None or before.version != table.version:
            table.optimize(cleanup_older_than=FOREVER)
        partitions = self._partition(table, before.approximate if before is not None else None)
        if before is not None and before.version == table.version and self._is_searched_as_asked(before):
            scan = {"fingerprint": mark, "scanned": self._scanned, "unreadable": len(self._unreadable)}
            state = before.model_copy(update=scan)
        else:
            state = self._new_state(table, mark, partitions)
        self._target.store.write_state(self._target.collection, self._target.model, state)
        if before is not None and before.version != state.version:
            _clean_up(table, before.version)
        return state

    def _partition(self, table: Any, known: ApproximateSearch | None) -> int | None:
        """Divide a large table into partitions; return their number, and None for exact search."""
        is_measurable = len(self._retriever.query_bank.text) >= LEAST_TEXTS
        if not is_measurable or not _may_be_approximate(self._target, table.count_rows()):
            drop_partitions(table)
            return None
        return create_partitions(table, known)

    def _is_searched_as_asked(self, state: IndexState) -> bool:
        return state.approximate is None or state.approximate.min_recall == self._target.min_recall

    def _new_state(self, table: Any, mark: str, partitions: int | None) -> IndexState:
        """Describe the latest version of the table, and measure its approximate search."""
        state = IndexState(
            version=table.version,
            build=uuid4().hex,
            images=table.count_rows(),
            dim=self._dim,
            grid=self._grid,
            fingerprint=mark,
            scanned=self._scanned,
            unreadable=len(self._unreadable),
        )
        if partitions is None:
            return state
        index = Index(self._target.store, self._target.collection, self._target.model, state, table)
        texts = self._retriever.query_bank.text.numpy(force=True)
        return state.model_copy(
            update={"approximate": choose_probes(index, texts, partitions, self._target.min_recall)}
        )

    def _open(self) -> tuple[Any, dict[str, list[Any]]]:
        """Return the table and its rows; an empty one where there is none, it is damaged, or its columns are others.

        Rows of a table with other columns are copied as far as their images are in the collection.
        """
        database, name = self._target.store.database(self._target.collection), table_name(self._target.model)
        if name in database.list_tables().tables:
            try:
                # The version that is read may have rows that a killed rebuild has not copied yet.
                if (before := self._target.state) is not None:
                    self._remember(database.open_table(name), before.version)
                table = database.open_table(name)
                self._remember(database.open_table(name), table.version)
                if table.schema.equals(self._schema):
                    return table, _identities(table)
            except Exception as error:  # LanceDB has no class of its own for a damaged table
                log.warning("The index of %s is damaged (%s), so it is made anew.", self._target.collection, error)
                database.drop_table(name, ignore_missing=True)
        table = database.create_table(name, schema=self._schema, mode="overwrite")
        return table, _identities(table)

    def _remember(self, table: Any, version: int) -> None:
        """Note the images whose content columns can be copied from a version of the table."""
        table.checkout(version)
        if all(_same_field(name, table.schema, self._contents) for name in self._contents.names):
            self._tables.append(table)
            self._note(_identities(table)["hash"])

    def _note(self, hashes: Iterable[str]) -> None:
        """Note that the content columns of the images with these hashes can be copied from the last table."""
        self._known_in |= dict.fromkeys(hashes, len(self._tables) - 1)

    def _add(self, table: Any, items: Sequence[Item]) -> None:
        """Add rows for `items`; images of known content are not embedded again."""
        if not items:
            return
        self._tables.append(table)
        with progress(None, "index", unit="images", total=len(items)) as bar, closing(self._encoded(items)) as encoded:
            for batch, files in zip(_batches(items, _BATCH), encoded, strict=True):
                self._add_batch(table, batch, files)
                bar.update(len(batch))

    def _encoded(self, items: Sequence[Item]) -> Generator[EncodedFiles]:
        """Yield the files of each batch, encoded by this process or by the cluster that RAY_ADDRESS names."""
        import torch

        threads, source = torch.get_num_threads(), self._target.source
        encoder = FileEncoder(self._retriever, source, self._known_in, self._contents, threads)
        tasks = ([item.path for item in batch] for batch in _batches(items, _BATCH))
        need = need_of(self._retriever.device.type, threads)
        encoded = map_shards(encoder.encode, tasks, 1, name=_describe, inputs=source.inputs, need=need)
        for batch, files in zip(_batches(items, _BATCH), encoded, strict=True):
            yield encoder.completed([item.path for item in batch], files) if is_in_use() else files

    def _add_batch(self, table: Any, batch: Sequence[Item], files: EncodedFiles) -> None:
        """Add rows for a batch of images."""
        known: list[_Read] = []
        new: list[_Read] = []
        for item, digest, error in zip(batch, files.hashes, files.errors, strict=True):
            if error:
                self._unreadable.append((item.path, error))
            else:
                # A node of a cluster does not know what batches before this one have added.
                (known if digest in self._known_in else new).append(_Read(item, digest))
        parts = [self._rows(new, files.contents)] if new else []
        for number in dict.fromkeys(self._known_in[file.hash] for file in known):
            parts.append(self._copied(number, [file for file in known if self._known_in[file.hash] == number]))
        if parts:
            table.add(pa.concat_tables(parts))
        added = dict.fromkeys(file.hash for file in new)
        self._note(added)
        self._embedded += len(added)
        self._known += len(known)

    def _copied(self, number: int, known: Sequence[_Read]) -> pa.Table:
        """Return rows for images of known content, with what a table has of it."""
        from lancedb.expr import col

        chosen = self._tables[number].search().where(col("hash").isin(sorted({file.hash for file in known})))
        return self._rows(known, chosen.select(self._contents.names).limit(ALL_ROWS).to_arrow())

    def _rows(self, read: Sequence[_Read], contents: pa.Table) -> pa.Table:
        """Return rows for files whose contents are among the rows of `contents`."""
        position = {digest: row for row, digest in enumerate(contents["hash"].to_pylist())}
        chosen = contents.take([position[file.hash] for file in read])
        columns = {name: chosen[name] for name in self._contents.names} | self._columns_of(read)
        return pa.table(columns, schema=self._schema)

    def _columns_of(self, read: Sequence[_Read]) -> dict[str, pa.Array]:
        """Return the columns that belong to a file and not to its content."""
        columns = {
            "path": [file.item.path for file in read],
            "stamp": [file.item.stamp for file in read],
            "hash": [file.hash for file in read],
            "captions": [list(file.item.captions) for file in read],
            "attributes": [dict(file.item.attributes) for file in read],
        }
        kinds = {field.name: field.type for field in self._schema}
        return {name: pa.array(values, kinds[name]) for name, values in columns.items() if name in kinds}

    def _make_schema(self, items: Sequence[Item]) -> pa.Schema:
        attributes = pa.Table.from_pylist([dict(item.attributes) for item in items]).schema
        # A column without values could be anything; as text it stays comparable.
        kinds = {field.name: pa.string() if pa.types.is_null(field.type) else field.type for field in attributes}
        columns = {
            "path": pa.string(),
            "stamp": pa.string(),
            "hash": pa.string(),
            "captions": pa.list_(pa.string()),
            **({"attributes": pa.struct(kinds)} if kinds else {}),
        }
        return pa.schema(columns | {field.name: field.type for field in self._contents})


def _clean_up(table: Any, replaced: int) -> None:
    """Remove the versions of a table that nobody has read since the version `replaced` was made.

    They stay for `_KEPT_SECONDS` at least. Clocks that were set back keep them longer.
    """
    made = next((known["timestamp"] for known in table.list_versions() if known["version"] == replaced), None)
    if made is not None and (age := datetime.now() - made) > timedelta(seconds=_KEPT_SECONDS):
        table.optimize(cleanup_older_than=age + _MARGIN)


def _identities(table: Any) -> dict[str, list[Any]]:
    """Return what tells the rows of a table apart."""
    columns: dict[str, list[Any]] = (
        table.search().select(["path", "stamp", "hash"]).with_row_id(True).limit(ALL_ROWS).to_arrow().to_pydict()
    )
    return columns


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _same_field(name: str, first: pa.Schema, second: pa.Schema) -> bool:
    return name in first.names and first.field(name).type.equals(second.field(name).type)


def _describe(paths: Sequence[str]) -> str:
    return f"the images {paths[0]} to {paths[-1]}"
