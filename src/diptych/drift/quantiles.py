"""Distributions kept as quantiles, and how far two of them are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

POINTS = 101
"""Quantiles kept of a distribution: distances of two are exact to 2/100."""
_SHARES = np.linspace(0, 1, POINTS)


@dataclass(frozen=True)
class Sketch:
    """A distribution by its quantiles from the least value to the greatest; none where there are no values.

    `count` is the number of independent values: that of images, where each has several.
    """

    count: int
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: ArrayLike, count: int | None = None) -> Sketch:
        """Of raw `values` (n,)."""
        raw = np.asarray(values, np.float64)
        if not raw.size:
            return cls(0, ())
        # A value of the sample each, so that ties stay ties.
        quantiles = np.quantile(raw, _SHARES, method="inverted_cdf")
        return cls(len(raw) if count is None else count, tuple(round(float(one), 6) for one in quantiles))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Sketch:
        """What `to_json` made."""
        quantiles = tuple(float(one) for one in content["quantiles"])
        if len(quantiles) not in (0, POINTS) or list(quantiles) != sorted(quantiles):
            raise ValueError(f"{len(quantiles)} quantiles, or not in order")
        return cls(int(content["count"]), quantiles)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"count": self.count, "quantiles": list(self.quantiles)}

    @property
    def median(self) -> float:
        """NaN where there are no values."""
        return self.quantiles[POINTS // 2] if self.quantiles else math.nan


def ks_distance(first: Sketch, second: Sketch) -> float:
    """The Kolmogorov-Smirnov distance, the largest between the cumulative shares; 0 where one has no values."""
    if not first.quantiles or not second.quantiles:
        return 0.0
    at = np.union1d(first.quantiles, second.quantiles)
    gaps = [_below(first.quantiles, at, side) - _below(second.quantiles, at, side) for side in ("left", "right")]
    return float(np.abs(gaps).max())


def ks_distance_of_values(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The same of raw values (n,) and (m,), exactly."""
    at = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(side), at, side="right") / len(side) for side in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def critical_distance(first: int, second: int, level: float) -> float:
    """What the distance of two samples of so many values exceeds with probability `level` where both are drawn from one
    distribution (Smirnov, Annals of Mathematical Statistics 19, 1948); a bound for small ones. Infinite without values.
    """
    if not first or not second:
        return math.inf
    return math.sqrt(-math.log(level / 2) / 2 * (first + second) / (first * second))


def _below(quantiles: Sequence[float], at: NDArray[np.float64], side: str) -> NDArray[np.float64]:
    """The share of values below `at` ("left") or not above it ("right"); between two quantiles it grows evenly."""
    points = np.asarray(quantiles)
    passed = np.searchsorted(points, at, side=side)  # type: ignore[call-overload]
    before, after = np.clip(passed - 1, 0, POINTS - 1), np.clip(passed, 0, POINTS - 1)
    width = points[after] - points[before]
    part = np.divide(at - points[before], width, out=np.zeros(len(at)), where=width > 0)
    return np.where(passed == 0, 0.0, (before + part) / (POINTS - 1))
