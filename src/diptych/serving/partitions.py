"""Partitions of a large index: an inverted index of Lance, from which a search takes its candidates.

The images are divided around centres, and a search reads the partitions whose centres are nearest to the query. More
partitions find more of the nearest images, and take longer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.serving.store import ApproximateSearch

SMALLEST = 100_000
"""Number of images from which on a collection is searched approximately; an exact search of fewer takes no longer
than encoding the query."""
_SAMPLE, _ITERATIONS = 64, 10
"""Images a partition, and iterations, that the centres are computed from."""
_GROWN = 1.5
_COLUMN = "embedding"


def divide(table: Any, before: ApproximateSearch | None) -> int:
    """Divide the images of a LanceDB table into partitions, if it has none or has grown much; return their number."""
    from lancedb.index import IvfFlat

    # Then as many centres are compared with a query as images in one partition.
    wanted = round(table.count_rows() ** 0.5)
    if before is not None and _index_names(table) and wanted < _GROWN * before.partitions:
        return before.partitions
    config = IvfFlat(distance_type="dot", num_partitions=wanted, sample_rate=_SAMPLE, max_iterations=_ITERATIONS)
    table.create_index(_COLUMN, config=config, replace=True)
    return wanted


def undivide(table: Any) -> None:
    """Remove the partitions of a table, if it has any."""
    for name in _index_names(table):
        table.drop_index(name)


def nearest_ids(table: Any, query: NDArray[np.float32], probes: int, limit: int) -> NDArray[np.uint64]:
    """Return Lance's ids of at most `limit` rows, the nearest to a query (d + 1,) in `probes` partitions."""
    search = table.search(query, vector_column_name=_COLUMN).distance_type("dot").nprobes(probes).limit(limit)
    ids: NDArray[np.uint64] = search.select(["_distance"]).with_row_id(True).to_arrow()["_rowid"].to_numpy()
    return ids


def _index_names(table: Any) -> list[str]:
    return [index.name for index in table.list_indices() if _COLUMN in index.columns]
