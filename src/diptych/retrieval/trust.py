"""Comparison of a calibration with a gallery that it was not fitted on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.model.package import Calibration
from diptych.retrieval.calibration import GOOD, FirstResults, equal_groups, probabilities
from diptych.retrieval.uncertainty import interval_ends, resampled_sums


class Estimate(NamedTuple):
    """A share of queries with its 95 % interval; None and 0 to 1 where there are no such queries."""

    share: float | None
    low: float
    high: float

    def describe(self) -> str:
        """Return the share in percent with its interval."""
        if self.share is None:
            return "unknown, since there are none"
        return f"{100 * self.share:.0f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"


class Trust(NamedTuple):
    """Comparison of a calibration with a gallery that it was not fitted on."""

    threshold: float
    """Probability from which on a first result counts as a good match."""
    good: int
    """Number of queries with a good match."""
    precision: Estimate
    """Share of these whose first result is right."""
    weak: int
    """Number of queries without a good match."""
    weak_wrong: Estimate
    """Share of these whose first result is wrong."""
    groups: list[tuple[float, Estimate]]
    """Reliability curve: mean probability, and share of right first results, of groups of equally many queries."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        precision, weak_wrong = self.precision._asdict(), self.weak_wrong._asdict()
        groups = [{"expected": expected, **right._asdict()} for expected, right in self.groups]
        return {**self._asdict(), "precision": precision, "weak_wrong": weak_wrong, "groups": groups}


def examine(
    calibration: Calibration, results: FirstResults, image: NDArray[np.int64], threshold: float = GOOD
) -> Trust:
    """Return how far a calibration holds, with intervals by the bootstrap over images.

    Args:
        calibration: fitted on other images.
        results: results of Q texts.
        image: (Q,), the image of each query.
        threshold: probability from which on a first result counts as a good match.
    """
    scores, right = results
    probability = probabilities(calibration, scores)
    good = probability >= threshold
    groups = equal_groups(probability)
    members = [np.isin(np.arange(len(right)), part) for part in groups]
    # Two columns for each kind of queries: hits and members.
    columns = [good & right, good, ~good & ~right, ~good, *(one for part in members for one in (part & right, part))]
    per_image = np.stack([np.bincount(image, column, int(image.max()) + 1) for column in columns], axis=1)
    resampled, sums = resampled_sums(per_image.astype(np.int64)), per_image.sum(axis=0)
    precision, weak_wrong, *shares = (
        _estimate(sums[column : column + 2], resampled[:, column : column + 2]) for column in range(0, len(columns), 2)
    )
    expected = [float(probability[part].mean()) for part in groups]
    curve = list(zip(expected, shares, strict=True))
    return Trust(threshold, int(good.sum()), precision, int((~good).sum()), weak_wrong, curve)


def _estimate(sums: NDArray[np.float64], resampled: NDArray[np.float64]) -> Estimate:
    """Return the share of hits (first) in members (second), from sums (2,) and resampled sums (R, 2)."""
    if not sums[1]:
        return Estimate(None, 0.0, 1.0)
    hits, members = resampled[resampled[:, 1] > 0].T
    return Estimate(float(sums[0] / sums[1]), *interval_ends(hits / members))
