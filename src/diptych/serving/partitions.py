"""Partitions of a large index: an inverted index of Lance, from which a search takes its candidates.

The images are divided around centres, and a search reads the partitions whose centres are nearest to the query. More
partitions find more of the nearest images, and take longer.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.serving.store import ApproximateSearch

log = logging.getLogger(__name__)

APPROXIMATE_FROM = 100_000
"""Number of images from which on a collection is searched approximately; an exact search of fewer takes no longer
than encoding the query."""
FOREVER = timedelta(days=36_500)
"""Age from which on versions of a table are removed, where none is to be."""
_SAMPLE, _ITERATIONS = 64, 10
"""Images for each partition that k-means learns from, and its iterations."""
_GROWN = 1.5
"""Ratio of the wanted number of partitions to the present one from which on they are made anew."""
_MOST_INDEXES = 4
"""Number of indexes up to which they are kept: a search reads partitions of each, and nine took 1.8 times as long."""
_COLUMN = "embedding"


def create_partitions(table: Any, before: ApproximateSearch | None) -> int:
    """Divide the images of a LanceDB table, if it has no good partitions yet; return their number.

    Images that were added make an index of their own each time, of which a search reads partitions too, so that
    partitions are made anew after some updates.
    """
    from lancedb.index import IvfFlat

    # The square root: a query is compared with as many centres as one partition has images.
    wanted = round(table.count_rows() ** 0.5)
    if before is not None and wanted < _GROWN * before.partitions and _is_whole(table):
        return before.partitions
    log.info("Dividing %s images into %s partitions for approximate search.", f"{table.count_rows():,}", f"{wanted:,}")
    config = IvfFlat(distance_type="dot", num_partitions=wanted, sample_rate=_SAMPLE, max_iterations=_ITERATIONS)
    table.create_index(_COLUMN, config=config, replace=True)
    # Lance notes the new partitions in a version of its own, which is to be made now and not by a later cleaning.
    table.optimize(cleanup_older_than=FOREVER)
    return wanted


def drop_partitions(table: Any) -> None:
    """Remove the partitions of a table, if it has any."""
    for name in _index_names(table):
        table.drop_index(name)


def nearest_ids(table: Any, query: NDArray[np.float32], probes: int, limit: int) -> NDArray[np.uint64]:
    """Return Lance's ids of at most `limit` rows, the nearest to a query (d + 1,) in `probes` partitions."""
    search = table.search(query, vector_column_name=_COLUMN).distance_type("dot").nprobes(probes).limit(limit)
    ids: NDArray[np.uint64] = search.select(["_distance"]).with_row_id(True).to_arrow()["_rowid"].to_numpy()
    return ids


def _is_whole(table: Any) -> bool:
    """Return whether a table has partitions, of all rows, in a few indexes."""
    stats = [table.index_stats(name) for name in _index_names(table)]
    return bool(stats) and all(one.num_indices <= _MOST_INDEXES and not one.num_unindexed_rows for one in stats)


def _index_names(table: Any) -> list[str]:
    return [index.name for index in table.list_indices() if _COLUMN in index.columns]
