"""Choices on val: the strength of the query-bank biases, and the weights of the fusion's scores.

Among many weights, the best on a few hundred images is often better by luck alone. So a fusion is used in a direction
only if its best weights there rank clearly better than none. Where that is not clear in one direction alone, but in
both together, the best weights for both are used, if they are better than none in this direction. Queries of one image
are not independent, so standard errors are those of means over images (docs/decisions/choosing-weights.md).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from diptych.model.querybank import QueryBank
from diptych.retrieval.embedding import Embedded
from diptych.retrieval.metrics import mean_log_rank
from diptych.retrieval.ranking import ranks_from_embeddings
from diptych.retrieval.reranking import Candidates, Directed, Shortlist, Weights

CHOICES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Values to choose each weight from."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Values to choose the strength of the biases from."""
CLEARLY = 2.5
"""Standard errors of a difference that count as clear. A fusion without value is better by as much in less than 5 % of
trainings."""


def choose_strength(embedded: Embedded, querybank: QueryBank, logit_scale: float) -> float:
    """Return the best of `STRENGTHS` for the biases by `mean_log_rank`; of equally good ones the smallest."""
    full = querybank._replace(strength=1.0)
    image_bias = full.image_bias(embedded.image, logit_scale)
    text_bias = full.text_bias(embedded.text, logit_scale)
    scores = []
    for strength in STRENGTHS:
        biased = replace(embedded, image_bias=strength * image_bias, text_bias=strength * text_bias)
        image, text = biased.ranking
        scores.append(mean_log_rank(*ranks_from_embeddings(image, text, embedded.image_of_caption).ranks))
    return STRENGTHS[int(np.argmin(scores))]


def choose_weights(candidates: Candidates, logit_scale: float, clearly: float = CLEARLY) -> Directed:
    """Return the weights of each direction, judged by the mean logarithm of the ranks on val.

    Args:
        candidates: the candidates of all queries of val.
        logit_scale: scale of the similarities.
        clearly: number of standard errors by which weights must be better than none.
    """
    # Of equally good weights the first count.
    every = sorted((Weights(*values) for values in product(CHOICES, repeat=2)), key=sum)
    i2t, t2i = (np.stack([_losses(own, logit_scale, weights) for weights in every]) for own in candidates)
    common = _clearly_best(i2t + t2i, clearly)
    return Directed(*(every[_clearly_best(own, clearly) or _if_better(common, own)] for own in (i2t, t2i)))


def _losses(shortlist: Shortlist, logit_scale: float, weights: Weights) -> NDArray[np.float64]:
    """Return the share of each image (N,) in the mean of the logarithms of the ranks."""
    logarithms = np.log(shortlist.ranks(logit_scale, weights))
    return np.bincount(shortlist.image, logarithms / len(logarithms)).astype(float)


def _clearly_best(losses: NDArray[np.float64], clearly: float) -> int:
    """Return the index of that of `losses` (W, N) with the smallest sum; 0 if it is not clearly below the first's."""
    best = int(losses.sum(axis=1).argmin())
    gain = losses[0] - losses[best]
    return best if gain.sum() > clearly * np.sqrt(len(gain)) * gain.std() else 0


def _if_better(index: int, losses: NDArray[np.float64]) -> int:
    """Return `index` if its sum of `losses` (W, N) is below the first's, else 0."""
    return index if losses[index].sum() < losses[0].sum() else 0
