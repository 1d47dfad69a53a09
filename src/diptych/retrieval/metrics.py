"""Metrics of image-text retrieval: recall, precision and ranks in both directions.

Recall@k is the share of queries with at least one relevant item among the first k (COCO's protocol). R-precision and
mAP@R ask for all of a query's R relevant items within the first R (Musgrave et al., ECCV 2020, section 3.2).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diptych.retrieval.ranking import DIRECTIONS, Outcomes, ranks_from_embeddings

Metrics = dict[str, Any]
"""{"i2t": {each of `FIGURES`}, "t2i": {each of `FIGURES`}, "rsum"}; in percent, except the ranks."""

KS = (1, 5, 10)
FIGURES = (*(f"recall@{k}" for k in KS), "r_precision", "map@r", "median_rank", "mean_rank", "tied")
FOLDED_IMAGES = 5_000
"""Number of images of a gallery that is also measured in folds: COCO's 5K test."""
FOLDS = 5


def retrieval_metrics(
    image: Tensor | NDArray[np.floating], text: Tensor | NDArray[np.floating], image_of_caption: NDArray[np.int64]
) -> Metrics:
    """Return the metrics of a gallery by the inner products of its embeddings; with 5,000 images also "folds_1k".

    The arguments and errors are those of `ranks_from_embeddings`.
    """
    metrics = metrics_from_ranks(*ranks_from_embeddings(image, text, image_of_caption))
    return with_folds(metrics, image, text, image_of_caption)


def with_folds(
    metrics: Metrics,
    image: Tensor | NDArray[np.floating],
    text: Tensor | NDArray[np.floating],
    image_of_caption: NDArray[np.int64],
) -> Metrics:
    """Return the `metrics` of a gallery, with "folds_1k" if it has 5,000 images."""
    parts = [
        metrics_from_ranks(*ranks_from_embeddings(image[images], text[captions], owner))
        for images, captions, owner in folds(image_of_caption, len(image))
    ]
    return {**metrics, "folds_1k": average_metrics(parts)} if parts else metrics


def metrics_from_ranks(i2t: Outcomes, t2i: Outcomes) -> Metrics:
    """Return the metrics of a gallery by the outcomes of its images and of its captions."""
    return _with_rsum({"i2t": _figures(i2t), "t2i": _figures(t2i)})


def mean_log_rank(i2t: NDArray[np.int64], t2i: NDArray[np.int64]) -> float:
    """Return the mean over both directions of the mean logarithm of the ranks, (Q,) int64 each.

    Settings are chosen by its lowest value on val, because every query contributes to it. A recall changes only with
    the queries that cross its threshold, which are few among a few hundred images.
    """
    return float(np.log(i2t).mean() + np.log(t2i).mean()) / 2


def recall_at_k(ranks: NDArray[np.int64], k: int) -> float:
    """Return the percentage of `ranks` (Q,) int64 that are at most k."""
    return 100.0 * float(np.count_nonzero(ranks <= k)) / len(ranks)


def averages(outcomes: Outcomes) -> dict[str, NDArray[np.float64]]:
    """Return the value (Q,) of each query for each figure that is a mean over the queries, by name."""
    return {
        "r_precision": 100.0 * outcomes.r_precision,
        "map@r": 100.0 * outcomes.average_precision,
        "mean_rank": outcomes.rank.astype(float),
        "tied": 100.0 * outcomes.tied,
    }


def average_metrics(parts: Sequence[Metrics]) -> Metrics:
    """Return the mean of each figure over `parts` of equal form."""
    means: Metrics = {
        direction: {figure: _mean([part[direction][figure] for part in parts]) for figure in parts[0][direction]}
        for direction in DIRECTIONS
    }
    return {**means, "rsum": _mean([part["rsum"] for part in parts])}


def folds(
    image_of_caption: NDArray[np.int64], images: int
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield COCO's 1K folds: five consecutive galleries of 1,000 of 5,000 images; none for any other number.

    Yields:
        The images, their captions (m,) int64, and the index (m,) of each of these captions' image within the fold.
    """
    size = FOLDED_IMAGES // FOLDS
    for start in range(0, FOLDED_IMAGES, size) if images == FOLDED_IMAGES else ():
        captions = np.flatnonzero((image_of_caption >= start) & (image_of_caption < start + size))
        yield slice(start, start + size), captions, np.asarray(image_of_caption)[captions] - start


def chance_metrics(image_of_caption: NDArray[np.int64], images: int) -> Metrics:
    """Return the metrics of random orders of a gallery: expected values, and the median of all of their ranks."""
    captions = len(image_of_caption)
    counts, shares = np.unique(np.bincount(image_of_caption, minlength=images), return_counts=True)

    def i2t_recall(k: int) -> float:
        chances = [_chance_of_none(captions, relevant, k) for relevant in counts.tolist()]
        return 1 - float(np.average(chances, weights=shares))

    def t2i_recall(k: int) -> float:
        return min(k / images, 1.0)

    # The first of r relevant items in a random order of n is on average at position (n + 1) / (r + 1).
    mean_ranks = float(np.average((captions + 1) / (counts + 1), weights=shares)), (images + 1) / 2
    return _with_rsum(
        {
            "i2t": _chance_figures(captions, counts, shares, i2t_recall, mean_ranks[0]),
            "t2i": _chance_figures(images, np.array([1]), np.array([1]), t2i_recall, mean_ranks[1]),
        }
    )


def _chance_figures(
    items: int, relevant: NDArray[np.int64], shares: NDArray[np.int64], recall: Callable[[int], float], mean_rank: float
) -> dict[str, float]:
    """Return the figures of random orders of `items`; `shares` (C,) of the queries have `relevant` (C,) of them."""
    average_precisions = [_expected_average_precision(items, count) for count in relevant.tolist()]
    return {
        **{f"recall@{k}": 100 * recall(k) for k in KS},
        "r_precision": 100 * float(np.average(relevant / items, weights=shares)),
        "map@r": 100 * float(np.average(average_precisions, weights=shares)),
        "median_rank": float(1 + bisect.bisect_left(range(1, items + 1), 0.5, key=recall)),
        "mean_rank": mean_rank,
        "tied": 0.0,
    }


def _chance_of_none(items: int, relevant: int, k: int) -> float:
    """Return the probability that no `relevant` item is among the first k of `items` in random order."""
    return math.prod(max(0, items - k - index) / (items - index) for index in range(relevant))


def _expected_average_precision(items: int, relevant: int) -> float:
    """Return the expected average precision at R of `items` in random order, of which R are `relevant`."""
    # Position k is relevant with a chance of R / n; then (k - 1) (R - 1) / (n - 1) of the k - 1 before it are, too.
    others = (relevant - 1) / max(1, items - 1)
    return sum((1 + (position - 1) * others) / position for position in range(1, relevant + 1)) / items


def _figures(outcomes: Outcomes) -> dict[str, float]:
    figures = {f"recall@{k}": recall_at_k(outcomes.rank, k) for k in KS}
    figures |= {name: float(np.mean(values)) for name, values in averages(outcomes).items()}
    figures["median_rank"] = float(np.median(outcomes.rank))
    return {name: figures[name] for name in FIGURES}


def _with_rsum(metrics: Metrics) -> Metrics:
    """Return the metrics of both directions, and the sum of their recalls."""
    return {**metrics, "rsum": sum(metrics[direction][f"recall@{k}"] for direction in DIRECTIONS for k in KS)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
