"""Confidence intervals of the metrics, and of their differences, by the bootstrap over images.

A resample draws as many images as there are, with replacement, each with all of its captions, which are not
independent of each other. The gallery stays as it is: the interval covers other queries of the same kind. Two rankings
are compared on the same resamples, query by query (Efron and Tibshirani 1993, chapter 13; Sakai, SIGIR 2006).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.metrics import FIGURES, KS, Metrics, averages, metrics_from_ranks
from diptych.retrieval.ranking import DIRECTIONS, Outcomes, Ranks

RESAMPLES = 10_000
LEVEL = 0.95
IMAGES_AT_ONCE = 4_000_000
"""Number of drawn images that are held at once."""

Samples = dict[str, Any]
"""Metrics in the form of `Metrics`, with an array (resamples,) float64 in place of each number."""


class Gain(NamedTuple):
    """Difference of one RSUM to another, on the same queries."""

    rsum: float
    low: float
    high: float
    p_value: float
    """Two-sided p-value of no difference; at least 2 / (resamples + 1)."""

    def describe(self) -> str:
        """Return the gain with its interval."""
        return f"{self.rsum:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


class Uncertainty(NamedTuple):
    """Confidence intervals of several rankings of one gallery, and of their differences."""

    intervals: dict[str, dict[str, Metrics]]
    """Result of `interval`, by name."""
    gains: dict[str, dict[str, Gain]]
    """Gain by name, over each of the names before it."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of reports/uncertainty.json."""
        gains = {name: {other: gain._asdict() for other, gain in over.items()} for name, over in self.gains.items()}
        return {"level": LEVEL, "resamples": RESAMPLES, "intervals": self.intervals, "gains": gains}


def judge(ranks: Mapping[str, Ranks], image_of_caption: NDArray[np.int64]) -> Uncertainty:
    """Return the intervals of all of `ranks`, and the gains between them; the arguments are those of `bootstrap`."""
    samples = bootstrap(ranks, image_of_caption)
    rsum = {name: metrics_from_ranks(*both)["rsum"] for name, both in ranks.items()}
    names = list(ranks)
    return Uncertainty(
        {name: interval(samples[name]) for name in names},
        {
            name: {other: gain(samples[name], samples[other], rsum[name] - rsum[other]) for other in names[:index]}
            for index, name in enumerate(names)
        },
    )


def bootstrap(
    ranks: Mapping[str, Ranks], image_of_caption: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Samples]:
    """Return the metrics of every resample, by name, an array for each figure of `metrics_from_ranks`.

    Args:
        ranks: by name, all of the same N images and M captions.
        image_of_caption: (M,) int, index of each caption's image.
        resamples: the number of resamples.
        seed: the seed of the draws.
    """
    images = len(next(iter(ranks.values())).i2t.rank)
    owners = np.arange(images), np.asarray(image_of_caption)
    tables = {
        name: [_Table.from_outcomes(outcomes, owner, images) for outcomes, owner in zip(both, owners, strict=True)]
        for name, both in ranks.items()
    }
    blocks: dict[str, list[list[dict[str, NDArray[np.float64]]]]] = {name: [] for name in ranks}
    for drawn in draws(images, resamples, seed):
        counts = resample_counts(drawn, images)
        for name, of_directions in tables.items():
            blocks[name].append([table.figures(counts) for table in of_directions])
    return {name: _joined(of_name) for name, of_name in blocks.items()}


def resampled_sums(per_image: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sums (`RESAMPLES`, C) of `per_image` (N, C) over the images of each resample."""
    images = len(per_image)
    return np.concatenate([resample_counts(drawn, images) @ per_image for drawn in draws(images, RESAMPLES, seed=0)])


def draws(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the images (B, images) int64 of each resample, in blocks of B; the same for the same seed."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows := max(1, IMAGES_AT_ONCE // images)):
        yield generator.integers(images, size=(min(rows, resamples - start), images))


def resample_counts(drawn: NDArray[np.int64], images: int) -> NDArray[np.float32]:
    """Return the number of times that each resample of `drawn` (B, N) holds each image, (B, N)."""
    cells = drawn + images * np.arange(len(drawn))[:, None]
    return np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float32)


def interval(samples: Samples) -> dict[str, Metrics]:
    """Return the metrics "low" and "high", each in the form of `Metrics`, between which 95 % of the resamples lie."""
    ends = {
        direction: {name: interval_ends(values) for name, values in samples[direction].items()}
        for direction in DIRECTIONS
    }
    rsum = interval_ends(samples["rsum"])
    return {
        side: {
            **{direction: {name: both[index] for name, both in ends[direction].items()} for direction in ends},
            "rsum": rsum[index],
        }
        for index, side in enumerate(("low", "high"))
    }


def interval_ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentiles of `values` (resamples,) between which 95 % of them lie."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def gain(better: Samples, worse: Samples, rsum: float) -> Gain:
    """Return the gain of `rsum` with its interval and p-value, by the same resamples of both rankings."""
    differences = better["rsum"] - worse["rsum"]
    one_side = int(min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0)))
    return Gain(rsum, *interval_ends(differences), min(1.0, 2 * (one_side + 1) / (len(differences) + 1)))


def gain_over_folds(differences: NDArray[np.float64], folds: int) -> Gain:
    """Return the mean of differences of RSUM in folds of a cross-validation, with interval and p-value.

    The training parts of folds overlap, so the differences vary less than those of independent trainings. Their
    variance is therefore enlarged (Nadeau and Bengio, Machine Learning 52, 2003, section 5): the mean over k of F folds
    has the variance s² · (1/k + 1/(F − 1)), where 1/(F − 1) is the size of a test part over that of the rest.

    Args:
        differences: (S, k) of S seeds and k different folds, the same folds for each seed; at least two folds.
        folds: F, the number of folds that the images are divided into.
    """
    from scipy.special import stdtr, stdtrit

    by_fold = differences.mean(axis=0)
    count, mean = len(by_fold), float(by_fold.mean())
    error = float(by_fold.std(ddof=1)) * math.sqrt(1 / count + 1 / (folds - 1))
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    p_value = 2 * float(stdtr(count - 1, -abs(mean) / error)) if error else float(not mean)
    return Gain(mean, mean - reach, mean + reach, p_value)


class _Table(NamedTuple):
    """Queries of one direction by image: their number, and the number of those with a rank of at most each level."""

    queries: NDArray[np.float32]
    """(N,)"""
    hits: NDArray[np.float32]
    """(N, L)"""
    levels: NDArray[np.int64]
    """(L,), ascending: those of the recalls, and all ranks among which a median can be."""
    sums: dict[str, NDArray[Any]]
    """(N,) each, the sums over an image's queries for the figures that are means."""

    @staticmethod
    def from_outcomes(outcomes: Outcomes, owner: NDArray[np.int64], images: int) -> _Table:
        """Return the table of Q queries, whose images are `owner` (Q,)."""
        ranks = outcomes.rank
        # A resample's median lies within ten standard errors of the middle. If an image's captions were all alike, one
        # standard error would be half the root of the sum of the squares of the images' shares of the queries.
        shares = np.bincount(owner, minlength=images) / len(owner)
        reach = min(0.5, 5 * math.sqrt(float(np.sum(shares**2))))
        low, high = np.quantile(ranks, [0.5 - reach, 0.5 + reach], method="closest_observation")
        levels = np.union1d([*KS, ranks.max()], ranks[(ranks >= low) & (ranks <= high)])
        columns = [np.bincount(owner[ranks <= level], minlength=images) for level in levels]
        return _Table(
            np.bincount(owner, minlength=images).astype(np.float32),
            np.stack(columns, 1, dtype=np.float32),
            levels,
            {name: np.bincount(owner, values, minlength=images) for name, values in averages(outcomes).items()},
        )

    def figures(self, counts: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Return the figures (B,) of resamples that hold each image as often as `counts` (B, N) says."""
        # These are whole numbers below 2^24, so the sums are exact whatever their order.
        queries, hits = counts @ self.queries, counts @ self.hits
        recalls = {f"recall@{k}": 100.0 * hits[:, self.levels == k][:, 0].astype(float) / queries for k in KS}
        lower, upper = (
            self.levels[(hits >= position[:, None]).argmax(axis=1)]
            for position in ((queries + 1) // 2, queries // 2 + 1)
        )
        means = {name: counts @ values / queries for name, values in self.sums.items()}
        figures = {**recalls, **means, "median_rank": (lower + upper) / 2}
        return {name: figures[name] for name in FIGURES}


def _joined(blocks: list[list[dict[str, NDArray[np.float64]]]]) -> Samples:
    samples: Samples = {
        direction: {name: np.concatenate([block[index][name] for block in blocks]) for name in blocks[0][index]}
        for index, direction in enumerate(DIRECTIONS)
    }
    return {**samples, "rsum": sum(samples[direction][f"recall@{k}"] for direction in samples for k in KS)}
