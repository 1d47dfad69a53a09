"""Approximate search: how much of a large index a search reads, chosen and measured beside exact search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.serving.index import Index
from diptych.serving.store import ApproximateSearch

FIRST = 10
"""Number of first results that recall is measured on."""
_TEXTS = 400
"""Texts that are tried: half of them choose the number of partitions, the others measure the choice."""


class LowRecallError(DiptychError):
    """Approximate search finds less than was asked for."""


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
