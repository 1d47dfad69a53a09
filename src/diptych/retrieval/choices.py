"""Choices on val: the strength of the query-bank biases, and the weights of the fusion's scores.

Among many weights, the best on a few hundred images is often better by luck alone. A fusion is therefore used in a
direction only if it ranks better there by `LET_IN` standard errors, and then with the smallest weights that are within
one standard error of the best (the one-standard-error rule of Breiman et al. 1984, section 3.4.3). Queries of one image
are not independent, so the standard errors are those of sums over images (docs/decisions/choosing-weights.md).
"""

from __future__ import annotations

import math
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
LET_IN = 2.5
"""Least gain of a fusion over none, in standard errors; one without value has it in less than 5 % of trainings."""


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


def choose_weights(candidates: Candidates, logit_scale: float) -> Directed:
    """Return the weights of each direction, judged by the logarithm of the ranks on val."""
    return Directed(*(_choose(shortlist, logit_scale) for shortlist in candidates))


def _choose(shortlist: Shortlist, logit_scale: float) -> Weights:
    every = sorted((Weights(*values) for values in product(CHOICES, repeat=2)), key=sum)
    losses = np.stack([_losses(shortlist, logit_scale, weights) for weights in every])
    best = losses[losses.sum(axis=1).argmin()]
    if _in_standard_errors(losses[0] - best) <= LET_IN:
        return Weights()
    near = [_in_standard_errors(loss - best) <= 1 for loss in losses[1:]]
    return every[1 + near.index(True)]


def _losses(shortlist: Shortlist, logit_scale: float, weights: Weights) -> NDArray[np.float64]:
    """Return the sum of the logarithms of the ranks of each image's queries, (N,)."""
    return np.bincount(shortlist.image, np.log(shortlist.ranks(logit_scale, weights))).astype(float)


def _in_standard_errors(differences: NDArray[np.float64]) -> float:
    """Return the sum of `differences` (N,) by its standard error; infinite where all are equal, but not zero."""
    total = float(differences.sum())
    error = float(np.sqrt(len(differences)) * differences.std())
    return total / error if error else math.copysign(math.inf, total) if total else 0.0
