"""Drift: the distance of incoming pairs from those that a model learned from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from diptych.config import Params
from diptych.drift.profile import Embedded, Profile
from diptych.drift.quantiles import critical_distance, ks_distance

LEVEL = 0.01
"""Probability that any distance exceeds what chance explains, where nothing has drifted."""
UNKNOWN, EMBEDDINGS = "unknown words", "embeddings"


@dataclass(frozen=True)
class Distance:
    """Distance of one statistic of the incoming pairs from the reference, from 0 to 1.

    Attributes:
        name: name of the statistic.
        distance: the Kolmogorov-Smirnov distance.
        explained: the distance that chance explains for samples of this size.
        limit: the largest distance that is no drift, retrain.drift.
        reference, incoming: medians, or shares; None where no single number describes the statistic.
    """

    name: str
    distance: float
    explained: float
    limit: float
    reference: float | None = None
    incoming: float | None = None

    @property
    def drifted(self) -> bool:
        """True if the distance exceeds the limit, and the distance that chance explains."""
        return self.distance > max(self.limit, self.explained)

    def describe(self, of: str = "incoming pairs") -> str:
        """Return the drift as a sentence; `of` are those that are compared with the reference, in the plural."""
        figures = "" if self.reference is None else f", from {self.reference:.4g} to {self.incoming:.4g}"
        return (
            f"The {of}' {self.name} drifted by {self.distance:.2f}{figures}: more than the {self.limit:g} of "
            f"retrain.drift, and than the {self.explained:.2f} that chance explains."
        )


@dataclass(frozen=True)
class Drift:
    """Distances of a number of incoming images and captions from those that a model learned from."""

    images: int
    captions: int
    distances: tuple[Distance, ...]

    @property
    def reasons(self) -> list[str]:
        """A sentence for each statistic that has drifted."""
        return [distance.describe() for distance in self.distances if distance.drifted]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        rows = [{**asdict(distance), "drifted": distance.drifted} for distance in self.distances]
        for row in rows:
            row["explained"] = row["explained"] if math.isfinite(row["explained"]) else None
        return {"images": self.images, "captions": self.captions, "drifted": bool(self.reasons), "distances": rows}

    def render(self) -> str:
        """Return a Markdown table with an introduction."""
        rows = [
            f"| {item.name} | {_figure(item.reference)} | {_figure(item.incoming)} | {item.distance:.2f} "
            f"| {item.explained:.2f} | {'**drifted**' if item.drifted else ''} |"
            for item in self.distances
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
    """Return the distances of `incoming` from `reference`, for each statistic that both have.

    They are Kolmogorov-Smirnov distances; those of words and embeddings are on the same scale. Where nothing has
    drifted, any of them exceeds the distance by chance with probability `LEVEL` at most (Bonferroni).
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
    known = sum(count for word, count in incoming.words.items() if word in reference.words)
    share = 1 - known / incoming.word_count if incoming.word_count else reference.unknown_words
    distances.append(words_distance(reference, share, incoming.images, level, limit))
    if comparable:
        distances.append(embeddings_distance(*comparable, level, limit))
    return Drift(incoming.images, incoming.captions, tuple(distances))


def words_distance(reference: Profile, share: float, count: int, level: float, limit: float) -> Distance:
    """Return the distance of a share of unknown words from that of the reference.

    A share is the mean over images of values from 0 to 1, for which the same bound holds (Hoeffding 1963).

    Args:
        reference: the profile whose words are known.
        share: share of unknown words, from 0 to 1.
        count: number of independent images or texts that the share was counted in.
        level: probability that chance explains more than `explained`.
        limit: the largest distance that is no drift.
    """
    distance = max(0.0, share - reference.unknown_words)
    explained = critical_distance(reference.images, count, level)
    return Distance(UNKNOWN, distance, explained, limit, reference.unknown_words, share)


def embeddings_distance(reference: NDArray[Any], incoming: NDArray[Any], level: float, limit: float) -> Distance:
    """Return the distance of embeddings (m, D) from those of the reference (n, D), all by one model.

    Args:
        reference: embeddings of the reference.
        incoming: embeddings that are compared with them.
        level: probability that chance explains more than `explained`.
        limit: the largest distance that is no drift.
    """
    # If a mean of two distances exceeds a bound, at least one of them does.
    explained = critical_distance(len(reference) // 2, len(incoming) // 2, level / 2)
    return Distance(EMBEDDINGS, witness_distance(reference, incoming), explained, limit)


def witness_distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the distance of two samples of vectors (n, D) and (m, D), from 0 to 1; 0 for fewer than two vectors.

    One half of each sample makes a witness function: the difference of the mean Gaussian kernels to each, with the
    median distance as kernel width (Gretton et al., JMLR 13, 2012, section 2.3). It differs from zero wherever the
    densities differ. The distance is the Kolmogorov-Smirnov distance of the witness's values on the two other halves.
    These had no part in the witness, so the distance is not overestimated (Kübler et al., A Witness Two-Sample Test,
    AISTATS 2022). The result is the mean of both assignments of the halves.
    """
    if min(len(first), len(second)) < 2:
        return 0.0
    halves = [(side[0::2].astype(np.float64), side[1::2].astype(np.float64)) for side in (first, second)]
    return float(np.mean([_held_out_distance(halves, fitted) for fitted in (0, 1)]))


def _held_out_distance(halves: list[tuple[NDArray[np.float64], NDArray[np.float64]]], fitted: int) -> float:
    """Return the distance on one half of each sample, by the witness of the halves at index `fitted`."""
    from scipy.stats import ks_2samp

    left, right = (side[fitted] for side in halves)
    both = np.concatenate([left, right])
    width = float(np.median(cdist(both, both)[np.triu_indices(len(both), 1)])) or 1.0

    def witness(points: NDArray[np.float64]) -> NDArray[np.float64]:
        kernels = [np.exp(-(cdist(points, side) ** 2) / (2 * width**2)).mean(axis=1) for side in (left, right)]
        return kernels[0] - kernels[1]

    values = [witness(side[1 - fitted]) for side in halves]
    return float(ks_2samp(*values, method="asymp").statistic)


def _comparable(first: Embedded | None, second: Embedded | None) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return both embeddings if the same model made them."""
    if first is None or second is None or first.weights_sha256 != second.weights_sha256:
        return None
    return first.pairs, second.pairs


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
