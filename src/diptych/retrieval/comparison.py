"""Whether one model is worse than another on the same queries: as a whole, and in parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.metrics import Ranks, metrics_from_ranks
from diptych.retrieval.slices import Part, part_counts
from diptych.retrieval.uncertainty import (
    LEVEL,
    RESAMPLES,
    Gain,
    Samples,
    bootstrap,
    draws,
    gain,
    interval,
    resample_counts,
)

K = 10
"""Recall at this k is compared in parts."""


class PartGain(NamedTuple):
    """Recall@10 in percent of the queries of a part, before and after, and how sure the difference is."""

    attribute: str
    label: str
    way: str
    queries: int
    before: float
    after: float
    low: float
    high: float
    """Ends of the interval of after − before; those of all parts together hold with 95 % (Bonferroni)."""


class Comparison(NamedTuple):
    """One model after another."""

    before: dict[str, Any]
    """"metrics", and their "interval"."""
    after: dict[str, Any]
    rsum: Gain
    """Of the second over the first."""
    parts: list[PartGain]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "before": self.before,
            "after": self.after,
            "rsum": self.rsum._asdict(),
            "parts": [part._asdict() for part in self.parts],
        }


def compare(before: Ranks, after: Ranks, image_of_caption: NDArray[np.int64], parts: Sequence[Part]) -> Comparison:
    """Both by the same resamples of the images, with all their captions.

    Args:
        before: what the queries of N images and M captions found by the one model.
        after: by the other.
        image_of_caption: (M,), each caption's image.
        parts: of these queries.
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
    """The parts' recall@10, before and after, by the same resamples."""
    if not parts:
        return []
    # Of each part the queries, the hits before and the hits after, that an image brings, (N, 3 · parts).
    brought = np.concatenate(
        [
            np.column_stack(
                [
                    part_counts(part, before, image_of_caption, [K]),
                    part_counts(part, after, image_of_caption, [K])[:, 1],
                ]
            )
            for part in parts
        ],
        axis=1,
    )
    images = len(brought)
    samples = np.concatenate(
        [resample_counts(drawn, images) @ brought for drawn in draws(images, RESAMPLES, seed=0)]
    ).reshape(RESAMPLES, len(parts), 3)
    whole = brought.sum(axis=0).reshape(len(parts), 3)
    tail = 50 * (1 - LEVEL) / len(parts)
    found = []
    for place, part in enumerate(parts):
        queries, old, new = whole[place].tolist()
        # A resample may hold none of these queries.
        drawn = samples[samples[:, place, 0] > 0, place]
        low, high = np.percentile(100.0 * (drawn[:, 2] - drawn[:, 1]) / drawn[:, 0], [tail, 100 - tail]).tolist()
        recalls = 100.0 * old / queries, 100.0 * new / queries
        found.append(PartGain(part.attribute, part.label, part.way, int(queries), *recalls, low, high))
    return found


def _figures(metrics: dict[str, Any], samples: Samples) -> dict[str, Any]:
    return {"metrics": metrics, "interval": interval(samples)}
