"""Partitions of a large table are made once, made anew when it has grown, and can be dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from large_index import Large, rows

from diptych.serving.partitions import FOREVER, create_partitions, drop_partitions, nearest_ids
from diptych.serving.store import ApproximateSearch


def test_all_partitions_together_hold_the_nearest_rows(tmp_path: Path) -> None:
    large = Large(tmp_path)
    partitions = create_partitions(large.table, None)
    table = large.table.search().with_row_id(True).limit(10_000).to_arrow()
    vectors = np.stack(table["embedding"].to_pylist()).astype(np.float32)
    for query in large.queries[:5]:
        exact = table["_rowid"].to_numpy()[np.argsort(-(vectors @ query), kind="stable")[:10]]
        assert sorted(nearest_ids(large.table, query, partitions, 10)) == sorted(exact)


def test_a_table_is_divided_again_only_when_it_has_grown_much(tmp_path: Path) -> None:
    large = Large(tmp_path)
    partitions = create_partitions(large.table, None)
    version = large.table.version
    large.table.optimize(cleanup_older_than=FOREVER)
    assert large.table.version == version
    known = ApproximateSearch(partitions=partitions, probes=1, recall=1.0, min_recall=0.9)
    assert create_partitions(large.table, known) == partitions
    assert large.table.version == version
    assert create_partitions(large.table, known.model_copy(update={"partitions": partitions // 2})) == partitions
    assert large.table.version > version
    drop_partitions(large.table)
    assert not large.table.list_indices()


def test_many_small_updates_are_gathered(tmp_path: Path) -> None:
    large = Large(tmp_path)
    partitions = create_partitions(large.table, None)
    known = ApproximateSearch(partitions=partitions, probes=1, recall=1.0, min_recall=0.9)
    for start in range(6):
        large.table.add(rows(large.vectors[20 * start : 20 * start + 20]))
        large.table.optimize(cleanup_older_than=FOREVER)
        create_partitions(large.table, known)
        [name] = (index.name for index in large.table.list_indices())
        assert large.table.index_stats(name).num_indices <= 4
        assert large.table.index_stats(name).num_unindexed_rows == 0
