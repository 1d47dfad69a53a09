"""Failures of retrieval: slices that fare worse, hubs, confused images, and the queries with the worst ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.evaluation import Evaluation
from diptych.retrieval.slices import Slice, parts, slices

FIRST = 10
"""Number of first results of a query that count for a hub."""
SHOWN = 8
"""Number of hubs, of pairs of confused images, and of queries with the worst ranks that are listed."""
ALIKE_BITS = 8
"""Largest number of the 64 bits of a perceptual hash in which near-duplicates differ."""


class Confusion(NamedTuple):
    """Two images, one of which is retrieved for captions of the other."""

    image: int
    other: int
    captions: int
    """Number of captions of both that retrieve the other image first."""
    near_duplicates: bool = False
    """True if their perceptual hashes differ in at most `ALIKE_BITS`."""


class Hubs(NamedTuple):
    """Occurrences of items among the first ten results of all queries of one direction."""

    occurrences: NDArray[np.int64]
    """(items,)"""
    expected: float
    """Number of occurrences of each item if all were equally frequent."""

    @property
    def never(self) -> float:
        """Percentage of the items that no query retrieves."""
        return 100.0 * float(np.mean(self.occurrences == 0))

    def most(self, count: int) -> list[int]:
        """Return the `count` most frequent items, of equally frequent ones the first."""
        order: list[int] = np.argsort(-self.occurrences, kind="stable")[:count].tolist()
        return order


class Failures(NamedTuple):
    """Failures of the last stage of an evaluation."""

    slices: list[Slice]
    hubs: dict[str, Hubs]
    """Hubs by direction: captions that images retrieve (i2t), and images that captions retrieve (t2i)."""
    confusions: list[Confusion]
    """Most frequent confusions."""
    missed: dict[str, list[tuple[int, int]]]
    """Queries by direction whose best relevant item has the worst rank, each with that rank."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of reports/failures.json, which names images and captions by their index in the split."""
        return {
            "slices": [part._asdict() for part in self.slices],
            "hubs": {
                direction: {
                    "expected": hubs.expected,
                    "never_percent": hubs.never,
                    "most": [{"item": item, "queries": int(hubs.occurrences[item])} for item in hubs.most(SHOWN)],
                }
                for direction, hubs in self.hubs.items()
            },
            "confusions": [confusion._asdict() for confusion in self.confusions],
            "missed": {
                direction: [{"query": query, "rank": rank} for query, rank in queries]
                for direction, queries in self.missed.items()
            },
        }


def find_failures(
    evaluation: Evaluation,
    image_of_caption: NDArray[np.int64],
    captions: Sequence[str],
    of_images: Mapping[str, NDArray[np.float64]],
    hashes: Sequence[str] | None = None,
    objects: Sequence[Sequence[str] | None] = (),
) -> Failures:
    """Return the failures of the last stage of an evaluation.

    Args:
        evaluation: the evaluation of N images and M captions.
        image_of_caption: (M,), each caption's image.
        captions: the texts (M).
        of_images: attributes of the images by name, (N,) each.
        hashes: perceptual hashes of the images (N), 16 hexadecimal digits each.
        objects: the categories of the objects in each image (N), once an object; None where they are not known.
    """
    *_, ranks = evaluation.ranks.values()
    images = len(ranks.i2t.rank)
    captions_first, images_first = evaluation.first
    pairs = confusions(images_first, image_of_caption)[:SHOWN]
    return Failures(
        slices(ranks, image_of_caption, parts(image_of_caption, captions, of_images, objects)),
        {"i2t": hubs(captions_first, images, len(captions)), "t2i": hubs(images_first, len(captions), images)},
        [Confusion(*pair, hashes is not None and _is_alike(hashes[pair[0]], hashes[pair[1]])) for pair in pairs],
        {direction: _missed(outcomes.rank) for direction, outcomes in ranks._asdict().items()},
    )


def hubs(first: Callable[[int], Sequence[int]], queries: int, items: int) -> Hubs:
    """Return the occurrences of `items` among the first ten results of the `queries`; `first` gives their results."""
    results = np.concatenate([np.asarray(first(query)[:FIRST], np.int64) for query in range(queries)])
    return Hubs(np.bincount(results, minlength=items), len(results) / items)


def confusions(
    first: Callable[[int], Sequence[int]], image_of_caption: NDArray[np.int64]
) -> list[tuple[int, int, int]]:
    """Return pairs of images that are taken for each other, the most frequent first.

    The third number is that of their captions, of both images, that retrieve the other image first.

    Args:
        first: the images that a caption retrieves, the best first.
        image_of_caption: (M,), each caption's image.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for caption, owner in enumerate(image_of_caption.tolist()):
        retrieved = first(caption)[0]
        if retrieved != owner:
            counts[min(owner, retrieved), max(owner, retrieved)] += 1
    return [(*pair, count) for pair, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _missed(ranks: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the queries with the worst `ranks` (Q,) beyond the first ten, of equally bad ones the first."""
    order = np.argsort(-ranks, kind="stable")[:SHOWN].tolist()
    return [(query, int(ranks[query])) for query in order if ranks[query] > FIRST]


def _is_alike(left: str, right: str) -> bool:
    return (int(left, 16) ^ int(right, 16)).bit_count() <= ALIKE_BITS
