"""Distributions stored as quantiles, and the distance of two distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

POINTS = 101
"""Number of quantiles stored of a distribution: distances of two are exact to 2/100."""
_SHARES = np.linspace(0, 1, POINTS)


@dataclass(frozen=True)
class Sketch:
    """A distribution by its quantiles from the least value to the greatest; none where there are no values.

    `count` is the number of independent values: the number of images, where each image has several values.
    """

    count: int
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: ArrayLike, count: int | None = None) -> Sketch:
        """Return the sketch of raw `values` (n,)."""
        raw = np.asarray(values, np.float64)
        if not raw.size:
            return cls(0, ())
        # Each quantile is a value of the sample, so that ties stay ties.
        quantiles = np.quantile(raw, _SHARES, method="inverted_cdf")
        return cls(len(raw) if count is None else count, tuple(round(float(value), 6) for value in quantiles))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Sketch:
        """Return the sketch that `to_json` has written.

        Raises:
            ValueError: `content` has another number of quantiles, or they are not in order.
        """
        quantiles = tuple(float(value) for value in content["quantiles"])
        if len(quantiles) not in (0, POINTS) or list(quantiles) != sorted(quantiles):
            raise ValueError(f"{len(quantiles)} quantiles, or not in order")
        return cls(int(content["count"]), quantiles)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"count": self.count, "quantiles": list(self.quantiles)}

    @property
    def median(self) -> float:
        """The median; NaN where there are no values."""
        return self.quantiles[POINTS // 2] if self.quantiles else math.nan


def ks_distance(first: Sketch, second: Sketch) -> float:
    """Return the Kolmogorov-Smirnov distance: the largest difference of the cumulative shares; 0 without values."""
    if not first.quantiles or not second.quantiles:
        return 0.0
    values = np.union1d(first.quantiles, second.quantiles)
    gaps = [
        _cumulative_share(first.quantiles, values, side) - _cumulative_share(second.quantiles, values, side)
        for side in ("left", "right")
    ]
    return float(np.abs(gaps).max())


def critical_distance(first: int, second: int, level: float) -> float:
    """Return the distance that two samples of one distribution exceed with probability `level`.

    `first` and `second` are the numbers of values (Smirnov, Annals of Mathematical Statistics 19, 1948). The distance
    is an upper bound for small samples, and infinite without values.
    """
    if not first or not second:
        return math.inf
    return math.sqrt(-math.log(level / 2) / 2 * (first + second) / (first * second))


def _cumulative_share(quantiles: Sequence[float], values: NDArray[np.float64], side: str) -> NDArray[np.float64]:
    """Return the shares below `values` ("left"), or at most `values` ("right"), linear between two quantiles."""
    points = np.asarray(quantiles)
    passed = np.searchsorted(points, values, side=side)  # type: ignore[call-overload]
    before, after = np.clip(passed - 1, 0, POINTS - 1), np.clip(passed, 0, POINTS - 1)
    width = points[after] - points[before]
    part = np.divide(values - points[before], width, out=np.zeros(len(values)), where=width > 0)
    return np.where(passed == 0, 0.0, (before + part) / (POINTS - 1))
