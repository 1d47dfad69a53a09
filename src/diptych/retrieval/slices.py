"""Slices of the queries: parts that have an attribute in common, and their recalls with confidence intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.metrics import recall_at_k
from diptych.retrieval.ranking import DIRECTIONS, Ranks
from diptych.retrieval.uncertainty import interval_ends, resampled_sums

PARTS = 3
"""Number of parts that the values of an attribute are cut into, with about equally many queries in each."""
KS = (1, 10)
CATEGORIES = 12
"""Number of object categories, the most frequent ones, that make slices."""
FEWEST = 10
"""Smallest number of images of a slice: the interval of a smaller one says nothing."""


class Part(NamedTuple):
    """Queries of one direction that have an attribute in common."""

    attribute: str
    label: str
    direction: str
    """i2t or t2i."""
    queries: NDArray[np.bool_]
    """(Q,), True for the queries of the direction that belong to the part."""


class Slice(NamedTuple):
    """Retrieval of a part of the queries."""

    attribute: str
    label: str
    direction: str
    """i2t or t2i."""
    queries: int
    recalls: dict[str, tuple[float, float, float]]
    """Recall@1 and @10 in percent, each with the ends of its confidence interval."""
    worse: bool
    """True if even the upper end of recall@10 is below the recall@10 of all queries of this direction."""


def parts(
    image_of_caption: NDArray[np.int64],
    captions: Sequence[str],
    of_images: Mapping[str, NDArray[np.float64]],
    objects: Sequence[Sequence[str] | None] = (),
) -> list[Part]:
    """Return the parts of the queries: by attributes of their image, and for captions by their number of words.

    Args:
        image_of_caption: (M,), each caption's image.
        captions: the texts (M).
        of_images: attributes of the images by name, (N,) each. An image whose value is NaN is in no part.
        objects: the categories of the objects in each image (N), once an object; None where they are not known. Parts
            by category may overlap.
    """
    if any(objects):
        counts = np.array([np.nan if names is None else len(names) for names in objects])
        of_images = {**of_images, "objects in the image": counts}
    made: list[Part] = []
    for name, values in of_images.items():
        made += _of_both_directions(name, cut(values), image_of_caption)
    made += _of_both_directions("an image that shows", _showing(objects), image_of_caption)
    words = np.array([len(caption.split()) for caption in captions], float)
    made += [Part("words in the caption", label, "t2i", queries) for label, queries in cut(words)]
    return [part for part in made if _image_count(part, image_of_caption) >= FEWEST]


def slices(ranks: Ranks, image_of_caption: NDArray[np.int64], parts: Sequence[Part]) -> list[Slice]:
    """Return the recalls of parts of the queries.

    Args:
        ranks: the ranks of N images and M captions.
        image_of_caption: (M,), each caption's image.
        parts: the parts of these queries.
    """
    if not parts:
        return []
    per_image = np.concatenate([part_counts(part, ranks, image_of_caption, KS) for part in parts], axis=1)
    samples = resampled_sums(per_image).reshape(-1, len(parts), 1 + len(KS))
    overall = {direction: recall_at_k(getattr(ranks, direction).rank, KS[-1]) for direction in DIRECTIONS}
    return [_slice(part, ranks, samples[:, index], overall[part.direction]) for index, part in enumerate(parts)]


def part_counts(part: Part, ranks: Ranks, image_of_caption: NDArray[np.int64], ks: Sequence[int]) -> NDArray[np.int64]:
    """Return the number of queries of a part by image, and of those with a hit among the first k, (N, 1 + ks)."""
    images, rank = len(ranks.i2t.rank), getattr(ranks, part.direction).rank
    owner = np.arange(images) if part.direction == "i2t" else image_of_caption
    hits = [np.bincount(owner, part.queries & (rank <= k), images) for k in ks]
    return np.stack([np.bincount(owner, part.queries, images), *hits], axis=1)


def cut(values: NDArray[np.float64]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return parts of `values` (Q,) with a label each: one for every value if they are few, otherwise about thirds.

    NaN is in none of them.
    """
    known = values[~np.isnan(values)]
    distinct = np.unique(known)
    if len(distinct) <= PARTS + 1:
        return [(f"{value:g}", values == value) for value in distinct] if len(distinct) > 1 else []
    edges = np.unique(np.quantile(known, np.arange(1, PARTS) / PARTS, method="lower"))
    numbers = np.searchsorted(edges, values)
    cuts = []
    for number in np.unique(numbers[~np.isnan(values)]):
        members = (numbers == number) & ~np.isnan(values)
        low, high = values[members].min(), values[members].max()
        cuts.append((f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}", members))
    return cuts


def _slice(part: Part, ranks: Ranks, samples: NDArray[np.float64], overall: float) -> Slice:
    """Return the recalls of `part`; `samples` (resamples, 1 + KS) are its queries and hits in each resample."""
    rank = getattr(ranks, part.direction).rank[part.queries]
    # A resample may hold none of these queries.
    samples = samples[samples[:, 0] > 0]
    recalls = {
        f"recall@{k}": (recall_at_k(rank, k), *interval_ends(100.0 * samples[:, column] / samples[:, 0]))
        for column, k in enumerate(KS, start=1)
    }
    is_worse = recalls[f"recall@{KS[-1]}"][2] < overall
    return Slice(part.attribute, part.label, part.direction, len(rank), recalls, is_worse)


def _of_both_directions(
    attribute: str, labelled: Sequence[tuple[str, NDArray[np.bool_]]], image_of_caption: NDArray[np.int64]
) -> list[Part]:
    """Return the parts of images, and those of their captions, by `labelled` images (N,)."""
    return [
        *(Part(attribute, label, "i2t", images) for label, images in labelled),
        *(Part(attribute, label, "t2i", images[image_of_caption]) for label, images in labelled),
    ]


def _image_count(part: Part, image_of_caption: NDArray[np.int64]) -> int:
    """Return the number of images that the queries of `part` belong to."""
    return int(part.queries.sum()) if part.direction == "i2t" else len(np.unique(image_of_caption[part.queries]))


def _showing(objects: Sequence[Sequence[str] | None]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return each of the most frequent categories, and the images (N,) that show it."""
    sets = [set(names or ()) for names in objects]
    frequency = Counter(name for names in sets for name in names)
    annotated = sum(names is not None for names in objects)
    by_frequency = sorted(frequency, key=lambda name: (-frequency[name], name))
    # A category that all images show separates nothing.
    separating = [name for name in by_frequency if FEWEST <= frequency[name] < annotated]
    return [(name, np.array([name in names for names in sets])) for name in separating[:CATEGORIES]]
