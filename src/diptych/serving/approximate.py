"""Approximate search: in a large collection, an inverted index of Lance names the candidates for an exact search.

The images are divided into partitions around centres, and a search reads the partitions whose centres are nearest to
the query. More partitions find more of the nearest images, and take longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.serving.store import ApproximateSearch

if TYPE_CHECKING:
    from diptych.serving.index import Index

SMALLEST = 200_000
"""Number of images from which on a collection is searched approximately; fewer are searched exactly as fast."""
FIRST = 10
"""Number of first results that recall is measured on."""
_TEXTS = 400
"""Texts that recall is measured with: half of them choose the number of partitions, the others measure the choice."""
_SAMPLE, _ITERATIONS = 64, 10
"""Images a partition, and iterations, that the centres are computed from."""
_GROWN = 1.5
_COLUMN = "embedding"


class LowRecallError(DiptychError):
    """Approximate search finds less than was asked for."""


def divide(table: Any, before: ApproximateSearch | None) -> int:
    """Divide the images of a LanceDB table into partitions, if it has none or has grown much; return their number."""
    from lancedb.index import IvfFlat

    # Then as many centres are compared with a query as images in one partition.
    wanted = round(table.count_rows() ** 0.5)
    if before is not None and _partitions(table) and wanted < _GROWN * before.partitions:
        return before.partitions
    config = IvfFlat(distance_type="dot", num_partitions=wanted, sample_rate=_SAMPLE, max_iterations=_ITERATIONS)
    table.create_index(_COLUMN, config=config, replace=True)
    return wanted


def undivide(table: Any) -> None:
    """Remove the partitions of a table, if it has any."""
    for name in _partitions(table):
        table.drop_index(name)


def nearest_ids(table: Any, query: NDArray[np.float32], probes: int, limit: int) -> NDArray[np.uint64]:
    """Return Lance's ids of at most `limit` rows, the nearest to a query (d + 1,) in `probes` partitions."""
    search = table.search(query, vector_column_name=_COLUMN).distance_type("dot").nprobes(probes).limit(limit)
    ids: NDArray[np.uint64] = search.select(["_distance"]).with_row_id(True).to_arrow()["_rowid"].to_numpy()
    return ids


def choose_probes(index: Index, texts: NDArray[np.float32], partitions: int, least: float) -> ApproximateSearch:
    """Choose the number of partitions that a search reads, as few as find enough of what an exact search finds.

    Args:
        index: an index in partitions.
        texts: embeddings of texts such as users write, (m, d); some of them are tried.
        partitions: their number.
        least: smallest recall@10, from 0 to 1.

    Raises:
        LowRecallError: half of the partitions find less. An exact search would take as long as more of them.
    """
    tried = texts[np.random.default_rng(0).permutation(len(texts))[:_TEXTS]]
    queries = np.concatenate([tried, np.ones((len(tried), 1), np.float32)], axis=1)
    right = [index.nearest(query, FIRST)[0] for query in queries]
    recall = 0.0
    for probes in _powers_of_two(max(1, partitions // 2)):
        found = [index.nearest(query, FIRST, probes=probes)[0] for query in queries]
        shares = np.array([len(np.intersect1d(*both)) / len(both[0]) for both in zip(right, found, strict=True)])
        recall = float(shares[1::2].mean())
        # The choice flatters itself, so it goes halfway from what is asked for to all.
        if shares[0::2].mean() >= (1 + least) / 2:
            break
    if recall >= least:
        return ApproximateSearch(partitions=partitions, probes=probes, recall=recall)
    raise LowRecallError(
        f"Approximate search of {index.collection} finds {recall:.1%} of the first ten of an exact search, and "
        f"{least:.1%} are asked for. `diptych index --collection {index.collection} --min-recall 1` searches it "
        "exactly, which takes longer; a lower --min-recall accepts less."
    )


def _powers_of_two(largest: int) -> list[int]:
    return [2**power for power in range(largest.bit_length())]


def _partitions(table: Any) -> list[str]:
    return [index.name for index in table.list_indices() if _COLUMN in index.columns]
