"""The choice of how much of a large index approximate search reads, measured against exact search."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from diptych.serving.index import Index
from diptych.serving.store import ApproximateSearch

FIRST = 10
"""Number of first results that recall is measured on."""
LEAST_TEXTS = 40
"""Number of texts from which on recall can be measured."""
_ROUNDING = 1e-5
"""Difference of inner products that is rounding alone."""
_TEXTS = 400
"""Number of texts that are tried: half of them choose the number of partitions, the others measure the choice."""


def choose_probes(index: Index, texts: NDArray[np.float32], partitions: int, min_recall: float) -> ApproximateSearch:
    """Choose the number of partitions that a search reads, as few as find enough of what an exact search finds.

    Where half of the partitions do not find enough, search is to be exact, for it would take little longer.

    Args:
        index: an index with partitions.
        texts: embeddings of texts such as users write, (m, d), at least `LEAST_TEXTS`; some of them are tried.
        partitions: their number.
        min_recall: smallest recall@10, from 0 to 1.
    """
    tried = texts[np.random.default_rng(0).permutation(len(texts))[:_TEXTS]]
    queries = np.concatenate([tried, np.ones((len(tried), 1), np.float32)], axis=1)
    choosing, measuring = _Tried(index, queries[0::2]), _Tried(index, queries[1::2])
    most = max(1, partitions // 2)
    for probes in _doubling(most):
        # The recall of the texts that choose is too high, so they have to find more: halfway to all.
        if choosing.recall(probes) < (1 + min_recall) / 2:
            continue
        recall = measuring.recall(probes)
        if recall >= min_recall:
            return ApproximateSearch(partitions=partitions, probes=probes, recall=recall, min_recall=min_recall)
    return ApproximateSearch(partitions=partitions, probes=None, recall=measuring.recall(most), min_recall=min_recall)


class _Tried:
    """Queries (m, d + 1) on an index, and what exact search finds for them."""

    def __init__(self, index: Index, queries: NDArray[np.float32]) -> None:
        self._index, self._queries = index, queries
        self._enough = [index.nearest(query, FIRST)[1][-1] - _ROUNDING for query in queries]

    def recall(self, probes: int) -> float:
        """Return the share of the first results of exact search that a search of `probes` partitions finds.

        Results are compared by their products: of equal images, any may be found.
        """
        # Lance waits more than it computes.
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda query: self._index.nearest(query, FIRST, probes=probes)[1], self._queries))
        return float(np.mean([(mine >= enough).mean() for mine, enough in zip(found, self._enough, strict=True)]))


def _doubling(largest: int) -> list[int]:
    """Return 1, 2, 4, … and the largest number itself."""
    return [2**power for power in range((largest - 1).bit_length())] + [largest]
