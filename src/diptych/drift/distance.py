"""Whether incoming pairs are of another kind than those that a model learned from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from diptych.config import Params
from diptych.drift.profile import Embedded, Profile
from diptych.drift.quantiles import critical_distance, ks_distance, ks_distance_of_values

LEVEL = 0.01
"""Probability that any of the distances exceeds what chance explains, where nothing has drifted."""
UNKNOWN, EMBEDDINGS = "unknown words", "embeddings"


@dataclass(frozen=True)
class Distance:
    """How far one statistic of the incoming pairs is from the reference, from 0 to 1.

    Attributes:
        explained: as far as samples of this size are apart by chance.
        limit: as far as it may be: retrain.drift.
        reference, incoming: medians, or shares; None where there is no one figure.
    """

    name: str
    distance: float
    explained: float
    limit: float
    reference: float | None = None
    incoming: float | None = None

    @property
    def drifted(self) -> bool:
        """Too far, and not by chance."""
        return self.distance > max(self.limit, self.explained)

    def describe(self) -> str:
        """One sentence."""
        figures = "" if self.reference is None else f", from {self.reference:.4g} to {self.incoming:.4g}"
        return (
            f"The incoming pairs' {self.name} drifted by {self.distance:.2f}{figures}: more than the {self.limit:g} of "
            f"retrain.drift, and than the {self.explained:.2f} that chance explains."
        )


@dataclass(frozen=True)
class Drift:
    """The distances of `images` incoming images with `captions` from those that a model learned from."""

    images: int
    captions: int
    distances: tuple[Distance, ...]

    @property
    def reasons(self) -> list[str]:
        """A sentence for each statistic that has drifted."""
        return [one.describe() for one in self.distances if one.drifted]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        rows = [{**asdict(one), "drifted": one.drifted} for one in self.distances]
        for row in rows:
            row["explained"] = row["explained"] if math.isfinite(row["explained"]) else None
        return {"images": self.images, "captions": self.captions, "drifted": bool(self.reasons), "distances": rows}

    def render(self) -> str:
        """A Markdown table, and what it says."""
        rows = [
            f"| {one.name} | {_figure(one.reference)} | {_figure(one.incoming)} | {one.distance:.2f} "
            f"| {one.explained:.2f} | {'**drifted**' if one.drifted else ''} |"
            for one in self.distances
        ]
        head = [
            f"{self.images:,} incoming images with {self.captions:,} captions, beside those that the champion learned "
            f"from; a distance beyond {self.distances[0].limit:g}, and beyond what chance explains, is drift."
            if self.distances
            else "There is nothing to compare.",
            "",
            "| | champion's | incoming | distance | by chance | |",
            "|---|---|---|---|---|---|",
        ]
        return "\n".join([*head, *rows])


def compare(reference: Profile, incoming: Profile, params: Params) -> Drift:
    """How far `incoming` is from `reference`, by each statistic that both have.

    Distances are Kolmogorov-Smirnov ones, those of words and embeddings on the same scale. Where nothing has drifted,
    one of them exceeds what chance explains with probability `LEVEL`, however many there are (Bonferroni).
    """
    names = [name for name in reference.statistics if name in incoming.statistics]
    comparable = _comparable(reference.embedded, incoming.embedded)
    level, limit = LEVEL / (len(names) + 1 + (comparable is not None)), params.retrain.drift
    distances = []
    for name in names:
        old, new = reference.statistics[name], incoming.statistics[name]
        explained = critical_distance(old.count, new.count, level)
        medians = (old.median, new.median) if old.count and new.count else (None, None)
        distances.append(Distance(name, ks_distance(old, new), explained, limit, *medians))
    distances.append(_words(reference, incoming, level, limit))
    if comparable:
        old_half, new_half = (len(side) // 2 for side in comparable)
        # Of a mean over two ways round at least one is as far.
        explained = critical_distance(old_half, new_half, level / 2)
        distances.append(Distance(EMBEDDINGS, witness_distance(*comparable), explained, limit))
    return Drift(incoming.images, incoming.captions, tuple(distances))


def witness_distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """How well two samples of vectors (n, D) and (m, D) are told apart, from 0 to 1.

    One half of both makes a witness: the difference of the mean Gaussian kernels to each, with the median distance as
    its width (Gretton et al., JMLR 13, 2012, section 2.3), which differs wherever the densities do. The distance is
    that of Kolmogorov and Smirnov between the witness's values of both other halves, which had no part in it, so it is
    not the greater for being sought (Kübler et al., A Witness Two-Sample Test, AISTATS 2022). The mean over both ways
    round; 0 where a sample has fewer than two.
    """
    if min(len(first), len(second)) < 2:
        return 0.0
    halves = [(side[0::2].astype(np.float64), side[1::2].astype(np.float64)) for side in (first, second)]
    return float(np.mean([_held_out_distance(halves, made) for made in (0, 1)]))


def _held_out_distance(halves: list[tuple[NDArray[np.float64], NDArray[np.float64]]], made: int) -> float:
    left, right = (side[made] for side in halves)
    both = np.concatenate([left, right])
    width = float(np.median(cdist(both, both)[np.triu_indices(len(both), 1)])) or 1.0

    def witness(points: NDArray[np.float64]) -> NDArray[np.float64]:
        near = [np.exp(-(cdist(points, side) ** 2) / (2 * width**2)).mean(axis=1) for side in (left, right)]
        return near[0] - near[1]

    return ks_distance_of_values(*(witness(side[1 - made]) for side in halves))


def _words(reference: Profile, incoming: Profile, level: float, limit: float) -> Distance:
    """A share is a mean of values from 0 to 1, an image each, for which the same bound holds (Hoeffding 1963)."""
    known = sum(count for word, count in incoming.words.items() if word in reference.words)
    share = 1 - known / incoming.word_count if incoming.word_count else reference.unknown_words
    distance = max(0.0, share - reference.unknown_words)
    explained = critical_distance(reference.images, incoming.images, level)
    return Distance(UNKNOWN, distance, explained, limit, reference.unknown_words, share)


def _comparable(first: Embedded | None, second: Embedded | None) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Embeddings by one and the same model."""
    if first is None or second is None or first.weights_sha256 != second.weights_sha256:
        return None
    return first.pairs, second.pairs


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
