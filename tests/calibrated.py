"""Results whose probability to be right is known, and a calibration that was fitted on such."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diptych.model.package import Calibration
from diptych.retrieval.calibration import FirstResults, calibrate


def drawn(queries: int, seed: int) -> FirstResults:
    """Queries whose first result is right with a probability that is known: sigmoid(−1 + 0.5 score + 2 margin)."""
    random = np.random.default_rng(seed)
    first = random.normal(2, 2, queries).astype(np.float32)
    margin = random.exponential(0.5, queries).astype(np.float32)
    scores = np.stack([first, first - margin, first - margin - 1], axis=1)
    return FirstResults(scores, random.random(queries) < chance(scores))


def chance(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    first, second = scores[:, 0].astype(float), scores[:, 1]
    return 1 / (1 + np.exp(1 - 0.5 * first - 2 * (first - second)))


def fitted(queries: int = 20_000) -> Calibration:
    calibration = calibrate(drawn(queries, seed=0), images=40)
    assert calibration is not None
    return calibration
