"""Calibration: the probability that the first image found for a text is the right one, from the scores.

A logistic regression on the first score and its margin to the second, fitted on val (Platt 1999). Images that fit as
well but are not the text's own count as wrong, so the probability is a cautious one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.model.package import Calibration, ReliabilityGroup
from diptych.retrieval.reranking import Shortlist, Weights

GROUPS = 10
"""Groups of equally many queries in a reliability curve."""
GOOD = 0.5
"""Probability from which on a first result counts as a good match, unless a user says otherwise."""


class FirstResults(NamedTuple):
    """Results of Q texts."""

    scores: NDArray[np.float32]
    """(Q, K), best first, as `Retriever.rank` gives them."""
    right: NDArray[np.bool_]
    """(Q,), whether the first result is right."""


def probabilities(calibration: Calibration, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probability that each query's first result is right, float64 (Q,).

    Args:
        calibration: a fitted calibration.
        scores: (Q, K), scores of each query's results as `Retriever.rank` gives them, best first. In a gallery of one
            image there is no margin, which counts as zero.
    """
    values: NDArray[np.float64] = calibration.intercept + _features(scores) @ [calibration.score, calibration.margin]
    # Half of 1 + tanh(x / 2) is the logistic function, and never overflows.
    return 0.5 * (1 + np.tanh(values / 2))


def calibrate(results: FirstResults, images: int) -> Calibration | None:
    """Fit a calibration; None where all first results are right, or none is.

    Args:
        results: results of the texts of val.
        images: number of images in the gallery.
    """
    scores, right = results
    if right.all() or not right.any():
        return None
    from sklearn.linear_model import LogisticRegression

    features = _features(scores)
    # In units of their deviations the default regularization is weak, and the fit is well conditioned.
    unit = np.maximum(features.std(axis=0), 1e-6)
    fitted = LogisticRegression().fit(features / unit, right)
    score, margin = fitted.coef_[0] / unit
    calibration = Calibration(
        intercept=float(fitted.intercept_[0]), score=float(score), margin=float(margin), images=images, reliability=[]
    )
    return calibration.model_copy(update={"reliability": reliability(probabilities(calibration, scores), right)})


def reliability(probability: NDArray[np.float64], right: NDArray[np.bool_]) -> list[ReliabilityGroup]:
    """Return the reliability curve: groups of equally many queries, by ascending probability."""
    groups = equal_groups(probability)
    return [
        ReliabilityGroup(expected=float(probability[part].mean()), right=float(right[part].mean()), queries=len(part))
        for part in groups
    ]


def equal_groups(probability: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Return the positions of the queries in `GROUPS` groups of equally many, by ascending probability."""
    order = np.argsort(probability, kind="stable")
    return [part for part in np.array_split(order, GROUPS) if len(part)]


def first_results(shortlist: Shortlist, logit_scale: float, weights: Weights) -> FirstResults:
    """Return the scores of the candidates of Q texts, and whether the first is right.

    Args:
        shortlist: candidates of the texts.
        logit_scale: scale of the similarities.
        weights: weights of the fusion for texts.
    """
    scores = shortlist.scores(logit_scale, weights)
    order = scores.argsort(dim=1, descending=True, stable=True)
    right = shortlist.relevant.gather(1, order[:, :1])[:, 0]
    return FirstResults(scores.gather(1, order).numpy(), right.numpy())


def _features(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the first score and the margin to the second of each query, (Q, 2)."""
    values = np.asarray(scores, np.float64)
    margin = values[:, 0] - values[:, 1] if values.shape[1] > 1 else np.zeros(len(values))
    return np.stack([values[:, 0], margin], axis=1)
