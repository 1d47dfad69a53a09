"""Comparison of two models on the same queries: as a whole, and in parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Ranks
from diptych.retrieval.slices import Part, part_counts
from diptych.retrieval.uncertainty import LEVEL, Gain, Samples, bootstrap, gain, interval, resampled_sums

K = 10
"""Recall at this k is compared in parts."""


class PartGain(NamedTuple):
    """Recall@10 in percent of the queries of a part, before and after, with the interval of the difference."""

    attribute: str
    label: str
    direction: str
    """i2t or t2i."""
    queries: int
    before: float
    after: float
    low: float
    """Lower end of the interval of after − before; the intervals of all parts hold together with 95 % (Bonferroni)."""
    high: float
    """Upper end of it."""

    def describe(self) -> str:
        """Return the part, and its recall before and after."""
        return f"{self.attribute} {self.label}, {self.direction}: recall@{K} {self.before:.1f} → {self.after:.1f}"


class Comparison(NamedTuple):
    """Comparison of one model with the one before it."""

    before: dict[str, Any]
    """"metrics", and their "interval"."""
    after: dict[str, Any]
    rsum: Gain
    """Gain of the model after over the one before."""
    parts: list[PartGain]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain values."""
        return {
            "before": self.before,
            "after": self.after,
            "rsum": self.rsum._asdict(),
            "parts": [part._asdict() for part in self.parts],
        }


def compare(before: Ranks, after: Ranks, image_of_caption: NDArray[np.int64], parts: Sequence[Part]) -> Comparison:
    """Compare two models by the same resamples of the images, each with all of its captions.

    Args:
        before: the ranks of N images and M captions by one model.
        after: the ranks by the other.
        image_of_caption: (M,), each caption's image.
        parts: parts of these queries.
    """
    samples = bootstrap({"before": before, "after": after}, image_of_caption)
    metrics = {"before": metrics_from_ranks(*before), "after": metrics_from_ranks(*after)}
    return Comparison(
        _figures(metrics["before"], samples["before"]),
        _figures(metrics["after"], samples["after"]),
        gain(samples["after"], samples["before"], metrics["after"]["rsum"] - metrics["before"]["rsum"]),
        part_gains(before, after, image_of_caption, parts),
    )


def part_gains(
    before: Ranks, after: Ranks, image_of_caption: NDArray[np.int64], parts: Sequence[Part]
) -> list[PartGain]:
    """Return the recall@10 of the parts before and after, by the same resamples; the arguments are `compare`'s."""
    if not parts:
        return []
    # The columns of each part are its queries, its hits before and its hits after: (N, 3 · parts).
    columns = [
        (*part_counts(part, before, image_of_caption, [K]).T, part_counts(part, after, image_of_caption, [K])[:, 1])
        for part in parts
    ]
    per_image = np.column_stack([column for of_part in columns for column in of_part])
    samples = resampled_sums(per_image).reshape(-1, len(parts), 3)
    totals = per_image.sum(axis=0).reshape(len(parts), 3)
    tail = 50 * (1 - LEVEL) / len(parts)
    gains = []
    for index, part in enumerate(parts):
        queries, old, new = totals[index].tolist()
        # A resample may hold none of these queries.
        drawn = samples[samples[:, index, 0] > 0, index]
        low, high = np.percentile(100.0 * (drawn[:, 2] - drawn[:, 1]) / drawn[:, 0], [tail, 100 - tail]).tolist()
        recalls = 100.0 * old / queries, 100.0 * new / queries
        gains.append(PartGain(part.attribute, part.label, part.direction, int(queries), *recalls, low, high))
    return gains


def _figures(metrics: dict[str, Any], samples: Samples) -> dict[str, Any]:
    return {"metrics": metrics, "interval": interval(samples)}
