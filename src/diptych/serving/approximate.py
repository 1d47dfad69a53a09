"""Approximate search: how much of a large index a search reads, chosen and measured beside exact search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diptych.serving.index import Index
from diptych.serving.store import ApproximateSearch

FIRST = 10
"""Number of first results that recall is measured on."""
_TEXTS = 400
"""Number of texts that are tried: half of them choose the number of partitions, the others measure the choice."""


def choose_probes(index: Index, texts: NDArray[np.float32], partitions: int, min_recall: float) -> ApproximateSearch:
    """Choose the number of partitions that a search reads, as few as find enough of what an exact search finds.

    Where half of the partitions do not find enough, search is to be exact, for it would take little longer.

    Args:
        index: an index with partitions.
        texts: embeddings of texts such as users write, (m, d); some of them are tried.
        partitions: their number.
        min_recall: smallest recall@10, from 0 to 1.
    """
    tried = texts[np.random.default_rng(0).permutation(len(texts))[:_TEXTS]]
    queries = np.concatenate([tried, np.ones((len(tried), 1), np.float32)], axis=1)
    exact = [index.nearest(query, FIRST)[0] for query in queries]
    recall = 0.0
    for probes in _doubling(max(1, partitions // 2)):
        approximate = [index.nearest(query, FIRST, probes=probes)[0] for query in queries]
        shares = np.array([len(np.intersect1d(*both)) / len(both[0]) for both in zip(exact, approximate, strict=True)])
        recall = float(shares[1::2].mean())
        # The recall of the texts that choose is too high, so they have to find more: halfway to all.
        if shares[0::2].mean() >= (1 + min_recall) / 2 and recall >= min_recall:
            return ApproximateSearch(partitions=partitions, probes=probes, recall=recall, min_recall=min_recall)
    return ApproximateSearch(partitions=partitions, probes=None, recall=recall, min_recall=min_recall)


def _doubling(largest: int) -> list[int]:
    """Return 1, 2, 4, … and the largest number itself."""
    return [2**power for power in range((largest - 1).bit_length())] + [largest]
