"""Search for images in two splits that look alike, by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest
from itertools import chain, combinations, islice, pairwise, product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_BITS = 64
_CHUNK = 2**17
"""Number of candidate pairs that are compared at once; they take 100 bytes each."""

Hashes = NDArray[np.uint64]
Rows = NDArray[np.intp]


class _Distinct(NamedTuple):
    """The distinct hashes of a split."""

    hashes: Hashes
    """Ascending."""
    counts: Rows
    """The number of rows with each hash."""
    rows: Rows
    """All rows of the split, in the order of their hashes, then ascending."""
    starts: Rows
    """The positions in `rows` at which the rows of each hash begin."""

    @property
    def first(self) -> Rows:
        """The first row with each hash."""
        return self.rows[self.starts]

    def rows_of(self, position: int) -> list[int]:
        """Return the rows with the hash at this position."""
        start = self.starts[position]
        return self.rows[start : start + self.counts[position]].tolist()


def near_duplicates(manifest: pd.DataFrame, splits: list[str], distance: int, limit: int) -> tuple[int, list[Any]]:
    """Find pairs of images in two of `splits` whose perceptual hashes differ in at most `distance` of 64 bits.

    Returns:
        The number of pairs, and the `limit` closest as {"distance", "first": {...}, "second": {...}}.
    """
    hashes = np.array([int(value, 16) for value in manifest["phash"]], np.uint64)
    distinct = [_distinct(hashes, np.flatnonzero(manifest["split"] == split)) for split in splits]
    results = [_close(first, second, distance, limit) for first, second in combinations(distinct, 2)]
    closest = sorted(pair for _, pairs in results for pair in pairs)[:limit]
    named = [
        {"distance": bits, "first": _name(manifest, first), "second": _name(manifest, second)}
        for bits, first, second in closest
    ]
    return sum(count for count, _ in results), named


def _distinct(hashes: Hashes, rows: Rows) -> _Distinct:
    values, counts = np.unique(hashes[rows], return_counts=True)
    return _Distinct(values, counts, rows[np.argsort(hashes[rows], kind="stable")], counts.cumsum() - counts)


def _close(first: _Distinct, second: _Distinct, distance: int, limit: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Return the number of close pairs of rows, and the `limit` closest as (bits, row, row)."""
    count, closest = 0, np.empty((0, 5), np.intp)
    if not len(first.hashes) or not len(second.hashes):
        return 0, []
    first_rows, second_rows = first.first, second.first
    for left, right in _candidates(first.hashes, second.hashes, distance):
        bits = np.bitwise_count(first.hashes[left] ^ second.hashes[right]).astype(np.intp)
        is_close = bits <= distance
        left, right, bits = left[is_close], right[is_close], bits[is_close]
        count += int((first.counts[left] * second.counts[right]).sum())
        # A pair of hashes beyond the `limit` closest cannot have one of the `limit` closest pairs of rows.
        pairs = np.concatenate([closest, np.stack([bits, first_rows[left], second_rows[right], left, right], axis=1)])
        closest = pairs[np.lexsort(pairs.T[2::-1])[:limit]]
    rows = chain.from_iterable(
        islice(product([bits], first.rows_of(left), second.rows_of(right)), limit)
        for bits, _, _, left, right in closest.tolist()
    )
    return count, nsmallest(limit, rows)


def _candidates(first: Hashes, second: Hashes, distance: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield all pairs of positions whose hashes may be close, each once.

    Hashes that differ in d bits agree in one of d + 1 parts at least (Norouzi et al. 2012, Fast search in Hamming space
    with multi-index hashing), so only those with an equal part are compared.
    """
    earlier: list[tuple[np.uint64, np.uint64]] = []
    for shift, mask in _parts(distance + 1):
        keys, others = (first >> shift) & mask, (second >> shift) & mask
        order = np.argsort(others, kind="stable")
        starts = np.searchsorted(others[order], keys, side="left")
        ends = np.searchsorted(others[order], keys, side="right")
        for left, position in _ranges(starts, ends):
            right = order[position]
            differing = first[left] ^ second[right]
            is_new = np.ones(len(left), bool)
            for known_shift, known_mask in earlier:
                is_new &= ((differing >> known_shift) & known_mask) != 0
            yield left[is_new], right[is_new]
        earlier.append((shift, mask))


def _parts(count: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """Yield the shift and the mask of each of `count` parts of a hash."""
    bounds = np.linspace(0, _BITS, count + 1).astype(int).tolist()
    for start, end in pairwise(bounds):
        yield np.uint64(start), np.uint64(2 ** (end - start) - 1)


def _ranges(starts: Rows, ends: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Yield the pairs (i, j) with starts[i] <= j < ends[i], about `_CHUNK` at once."""
    before = np.append(0, (ends - starts).cumsum())
    begin = 0
    while begin < len(starts):
        end = max(begin + 1, int(np.searchsorted(before, before[begin] + _CHUNK, side="right")) - 1)
        counts = (ends - starts)[begin:end]
        left = np.repeat(np.arange(begin, end), counts)
        offset = np.arange(len(left)) - np.repeat(before[begin:end] - before[begin], counts)
        yield left, starts[left] + offset
        begin = end


def _name(manifest: pd.DataFrame, row: int) -> dict[str, Any]:
    image = manifest.iloc[row]
    return {"image_id": int(image["image_id"]), "split": image["split"], "source": image["source"]}
