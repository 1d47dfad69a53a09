"""An opened index gives the rows that are asked for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from searching import Collection, photo

from diptych.errors import DiptychError
from diptych.serving.sources import SourceError


def test_rows_come_in_the_order_of_the_question(indexed: Collection) -> None:
    index, paths = indexed.open(), indexed.paths()
    rows = np.array([5, 0, 3, 0])
    assert [record.path for record in index.records(rows)] == [paths[row] for row in rows]
    grids = index.grids(rows)
    assert grids.shape == (4, *(index.state.grid or ()))
    assert (grids[1] == grids[3]).all()
    assert (grids[0] == index.grids(np.array([5]))[0]).all()


def test_an_image_is_found_by_its_hash_and_of_twins_the_first(indexed: Collection) -> None:
    (indexed.photos / "z.png").write_bytes(photo(5))
    indexed.update()
    index = indexed.open()
    row = index.row_of(hashlib.sha256(photo(5)).hexdigest())
    assert row is not None
    assert index.records(np.array([row]))[0].path == "e.png"
    assert [index.row_of(digest) for digest in ("", "f" * 64, "é", "g" * 200)] == [None] * 4


def test_the_original_is_read_where_the_collection_is(indexed: Collection) -> None:
    index = indexed.open()
    record = index.records(np.array([0]))[0]
    assert index.original(record) == (indexed.photos / record.path).read_bytes()
    (indexed.photos / record.path).write_bytes(photo(99))
    with pytest.raises(SourceError, match=f"{record.path} has changed since it was indexed"):
        index.original(record)
    (indexed.photos / record.path).unlink()
    with pytest.raises(SourceError, match=f"{record.path} cannot be read: No such file"):
        index.original(record)


def test_a_second_opening_maps_the_files_of_the_first(indexed: Collection) -> None:
    first = indexed.open()
    [folder] = (indexed.store.local / "versions").iterdir()
    written = (folder / "vectors.npy").stat().st_mtime_ns
    assert (indexed.open().vectors == first.vectors).all()
    assert (folder / "vectors.npy").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["vectors.npy", "details.arrow"])
@pytest.mark.parametrize("size", [None, 0, 200])
def test_a_damaged_local_copy_is_made_again(indexed: Collection, name: str, size: int | None) -> None:
    expected = indexed.open().vectors.copy()
    [folder] = (indexed.store.local / "versions").iterdir()
    if size is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
    index = indexed.open()
    assert (index.vectors == expected).all()
    assert len(index.details) == 7


def test_an_index_without_grid_tokens_says_how_to_get_them(collection: Collection) -> None:
    collection.update(rerank=False)
    with pytest.raises(DiptychError, match="index it with --rerank"):
        collection.open().grids(np.array([0]))
