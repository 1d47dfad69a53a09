"""How sure the figures are: the bootstrap over images.

A resample draws as many images as there are, with replacement, and each brings its captions along, which are not
independent of each other. The gallery stays as it is: in question is what the figures would be with other queries of
the same kind. What is compared is compared on the same resamples, query by query (Efron and Tibshirani 1993, chapter
13; Sakai, SIGIR 2006).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.metrics import FIGURES, KS, Found, Metrics, Ranks, averages, metrics_from_ranks

RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 4_000_000
"""Drawn images held at once."""

Samples = dict[str, Any]
"""As `Metrics`, with an array (resamples,) float64 in place of each number."""


class Gain(NamedTuple):
    """How much higher one RSUM is than another, on the same queries."""

    rsum: float
    low: float
    high: float
    p_value: float
    """Two-sided, of no difference; at least 2 / (resamples + 1)."""


class Uncertainty(NamedTuple):
    """How sure the figures of a gallery are, and what is better than what."""

    intervals: dict[str, dict[str, Metrics]]
    """By name, as `interval` says."""
    gains: dict[str, dict[str, Gain]]
    """By name, over each of those before it."""

    def to_json(self) -> dict[str, Any]:
        """What reports/uncertainty.json holds."""
        gains = {name: {other: found._asdict() for other, found in over.items()} for name, over in self.gains.items()}
        return {"level": LEVEL, "resamples": RESAMPLES, "intervals": self.intervals, "gains": gains}


def judge(ranks: Mapping[str, Ranks], image_of_caption: NDArray[np.int64]) -> Uncertainty:
    """All that `ranks` say of each other; see `bootstrap`."""
    samples = bootstrap(ranks, image_of_caption)
    rsum = {name: metrics_from_ranks(*both)["rsum"] for name, both in ranks.items()}
    names = list(ranks)
    return Uncertainty(
        {name: interval(samples[name]) for name in names},
        {
            name: {other: gain(samples[name], samples[other], rsum[name] - rsum[other]) for other in names[:place]}
            for place, name in enumerate(names)
        },
    )


def bootstrap(
    ranks: Mapping[str, Ranks], image_of_caption: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Samples]:
    """The metrics of every resample.

    Args:
        ranks: by name, all of the same N images and M captions.
        image_of_caption: (M,) int, index of each caption's image.

    Returns:
        By name, the metrics as `metrics_from_ranks` has them, an array each.
    """
    images = len(next(iter(ranks.values())).i2t.rank)
    owners = np.arange(images), np.asarray(image_of_caption)
    tables = {
        name: [_Table.of(found, owner, images) for found, owner in zip(both, owners, strict=True)]
        for name, both in ranks.items()
    }
    parts: dict[str, list[list[dict[str, NDArray[np.float64]]]]] = {name: [] for name in ranks}
    for drawn in draws(images, resamples, seed):
        counts = resample_counts(drawn, images)
        for name, ways in tables.items():
            parts[name].append([table.figures(counts) for table in ways])
    return {name: _joined(blocks) for name, blocks in parts.items()}


def draws(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The images (some resamples, images) int64 of each resample, in blocks; the same for the same seed."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows := max(1, _AT_ONCE // images)):
        yield generator.integers(images, size=(min(rows, resamples - start), images))


def interval(samples: Samples) -> dict[str, Metrics]:
    """Between "low" and "high", each as `Metrics`, lie 95 % of the resamples."""
    ends = {way: {name: interval_ends(values) for name, values in samples[way].items()} for way in ("i2t", "t2i")}
    rsum = interval_ends(samples["rsum"])
    return {
        side: {**{way: {name: both[place] for name, both in ends[way].items()} for way in ends}, "rsum": rsum[place]}
        for place, side in enumerate(("low", "high"))
    }


def gain(better: Samples, worse: Samples, rsum: float) -> Gain:
    """How sure it is that one RSUM is `rsum` higher than another, by the same resamples of both."""
    differences = better["rsum"] - worse["rsum"]
    one_side = int(min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0)))
    return Gain(rsum, *interval_ends(differences), min(1.0, 2 * (one_side + 1) / (len(differences) + 1)))


class _Table(NamedTuple):
    """How many queries each image brings, of one direction, and how many of them have a rank up to each level."""

    queries: NDArray[np.float32]
    """(N,)"""
    found: NDArray[np.float32]
    """(N, L)"""
    levels: NDArray[np.int64]
    """(L,), ascending: those of the recalls, and all ranks among which a median can be."""
    sums: dict[str, NDArray[Any]]
    """(N,) each, what the queries of an image bring to the figures that are means."""

    @staticmethod
    def of(found: Found, owner: NDArray[np.int64], images: int) -> _Table:
        """Of Q queries, whose images are `owner` (Q,)."""
        ranks = found.rank
        # A resample's median lies within ten standard errors of the middle. Were an image's captions all alike, one
        # would be half the root of the sum of the squares of the images' shares of the queries.
        shares = np.bincount(owner, minlength=images) / len(owner)
        reach = min(0.5, 5 * math.sqrt(float(np.sum(shares**2))))
        low, high = np.quantile(ranks, [0.5 - reach, 0.5 + reach], method="closest_observation")
        levels = np.union1d([*KS, ranks.max()], ranks[(ranks >= low) & (ranks <= high)])
        columns = [np.bincount(owner[ranks <= level], minlength=images) for level in levels]
        return _Table(
            np.bincount(owner, minlength=images).astype(np.float32),
            np.stack(columns, 1, dtype=np.float32),
            levels,
            {name: np.bincount(owner, values, minlength=images) for name, values in averages(found).items()},
        )

    def figures(self, counts: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Of resamples (B,) that hold each image as often as `counts` (B, N) says."""
        # Whole numbers below 2^24, so the sums are exact whatever their order.
        queries, found = counts @ self.queries, counts @ self.found
        recalls = {f"recall@{k}": 100.0 * found[:, self.levels == k][:, 0].astype(float) / queries for k in KS}
        middle = [
            self.levels[(found >= place[:, None]).argmax(axis=1)] for place in ((queries + 1) // 2, queries // 2 + 1)
        ]
        means = {name: counts @ values / queries for name, values in self.sums.items()}
        figures = {**recalls, **means, "median_rank": (middle[0] + middle[1]) / 2}
        return {name: figures[name] for name in FIGURES}


def resample_counts(drawn: NDArray[np.int64], images: int) -> NDArray[np.float32]:
    """How often each resample of `drawn` (B, N) holds each image, (B, N)."""
    places = drawn + images * np.arange(len(drawn))[:, None]
    return np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float32)


def _joined(blocks: list[list[dict[str, NDArray[np.float64]]]]) -> Samples:
    ways = {
        way: {name: np.concatenate([block[place][name] for block in blocks]) for name in blocks[0][place]}
        for place, way in enumerate(("i2t", "t2i"))
    }
    return {**ways, "rsum": sum(ways[way][f"recall@{k}"] for way in ways for k in KS)}


def interval_ends(values: NDArray[np.float64]) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
