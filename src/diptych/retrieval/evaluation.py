"""Retrieval metrics of a gallery: of a model at each stage of ranking, or of any embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from diptych.errors import DiptychError
from diptych.files import sources_sha256
from diptych.model.dual_encoder import DualEncoder
from diptych.retrieval.calibration import FirstResults, first_results
from diptych.retrieval.embedding import Embedded
from diptych.retrieval.metrics import Metrics, average_metrics, folds, metrics_from_ranks, recall_at_k, with_folds
from diptych.retrieval.ranking import DIRECTIONS, Ranks, ranks_from_embeddings
from diptych.retrieval.reranking import Directed, candidate_logits, reranked_ranks, top_candidates
from diptych.retrieval.similarities import Similarities, similarities

CURVE_KS = range(1, 51)
FIRST = 10
"""Number of first results that are kept of each query where embeddings alone rank."""


First = Callable[[int], list[int]]
"""Function from a query to positions in the gallery, best first."""


Deep = Callable[[int], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Function from k to the first k results of all queries: captions of images (N, k), images of captions (M, k)."""


class Evaluation(NamedTuple):
    """Metrics of a gallery and the results behind them."""

    ranks: dict[str, Ranks]
    """Ranks by stage: "towers" by the cosine, "qb_norm" by the cosine minus the items' biases, "reranked" by the
    fusion. External embeddings have the stage "embeddings" alone, by the cosine.
    """
    metrics: dict[str, Metrics]
    """Metrics by stage, as in reports/metrics.json."""
    first: tuple[First, First]
    """First results of the last stage: captions of an image, and images of a caption."""
    deep: Deep
    """Results of the last stage for all queries."""
    similarities: Similarities
    """Cosines of the embeddings, without biases."""
    best: FirstResults | None = None
    """Scores of the results of all captions, and whether the first is right; None for embeddings alone."""
    reranking_seconds: float = 0.0
    """Time to find and score the candidates of all queries; in no file, whose bytes would differ."""


def evaluator_sha256() -> str:
    """Return the SHA-256 of the code that computes the metrics of a model from a prepared split, in hexadecimal."""
    names = ("data", "model", "retrieval", "config.py", "retriever.py")
    return sources_sha256(Path(__file__).parents[1], names)


def evaluate_gallery(
    model: DualEncoder, embedded: Embedded, *, top_k: int, weights: Directed, device: torch.device
) -> Evaluation:
    """Rank by the towers, with query-bank normalization, and with `top_k` candidates re-ranked by the fusion.

    Five thousand images are measured in five folds as well. `embedded` has its biases.
    """
    ranks, first, deep, best, seconds = _rank(model, embedded, top_k, weights, device)
    metrics = {stage: metrics_from_ranks(*both) for stage, both in ranks.items()}
    parts = [
        _rank(model, embedded.part(*fold), top_k, weights, device)[0]
        for fold in folds(embedded.image_of_caption, len(embedded.image))
    ]
    if parts:
        for stage, of_stage in metrics.items():
            of_stage["folds_1k"] = average_metrics([metrics_from_ranks(*part[stage]) for part in parts])
    cosines = similarities(embedded.image, embedded.text, embedded.image_of_caption)
    return Evaluation(ranks, metrics, first, deep, cosines, best, seconds)


def evaluate_embeddings(image: Tensor, text: Tensor, image_of_caption: NDArray[np.int64]) -> Evaluation:
    """Rank by the cosine of embeddings from anywhere. Five thousand images are measured in five folds as well.

    Args:
        image: (N, d) floating.
        text: (M, d) floating.
        image_of_caption: (M,), index of each caption's image.

    Raises:
        DiptychError: as `ranks_from_embeddings`, or an embedding has no direction.
    """
    image, text = _directions(image, "image"), _directions(text, "text")
    ranks = ranks_from_embeddings(image, text, image_of_caption)
    metrics = with_folds(metrics_from_ranks(*ranks), image, text, image_of_caption)
    first = _first(image, text), _first(text, image)

    def deep(k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        captions, images = (top_candidates(*sides, k)[0].numpy() for sides in ((image, text), (text, image)))
        return captions, images

    return Evaluation(
        {"embeddings": ranks}, {"embeddings": metrics}, first, deep, similarities(image, text, image_of_caption)
    )


def recall_curves(evaluation: Evaluation) -> list[tuple[str, str, int, float]]:
    """Return rows of direction, stage, k from 1 to 50, and recall@k in percent."""
    return [
        (direction, stage, k, recall_at_k(outcomes.rank, k))
        for stage, both in evaluation.ranks.items()
        for direction, outcomes in zip(DIRECTIONS, both, strict=True)
        for k in CURVE_KS
    ]


def _rank(
    model: DualEncoder, embedded: Embedded, top_k: int, weights: Directed, device: torch.device
) -> tuple[dict[str, Ranks], tuple[First, First], Deep, FirstResults, float]:
    """Return ranks by stage, results of the last one, the captions' scores, and the seconds for the candidates."""
    started = time.perf_counter()
    candidates, scale = (
        candidate_logits(model, embedded, top_k, device=device, weights=weights),
        model.logit_scale.item(),
    )
    seconds = time.perf_counter() - started
    ranks = {
        "towers": ranks_from_embeddings(embedded.image, embedded.text, embedded.image_of_caption),
        "qb_norm": Ranks(candidates.i2t.before, candidates.t2i.before),
        "reranked": reranked_ranks(candidates, scale, weights),
    }
    i2t, t2i = (shortlist.order(scale, own) for shortlist, own in zip(candidates, weights, strict=True))

    def deep(k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Items beyond the candidates follow in the towers' order.
        image, text = embedded.ranking
        rest = top_candidates(image, text, k)[0], top_candidates(text, image, k)[0]
        captions, images = (
            torch.cat([order[:, :k], following[:, order.shape[1] :]], dim=1).numpy()
            for order, following in zip((i2t, t2i), rest, strict=True)
        )
        return captions, images

    best = first_results(candidates.t2i, scale, weights.t2i)
    return ranks, (lambda image: i2t[image].tolist(), lambda caption: t2i[caption].tolist()), deep, best, seconds


def _first(queries: Tensor, gallery: Tensor) -> First:
    """Return a function that ranks all queries when it is first called: metrics alone need no results."""

    @cache
    def best() -> list[list[int]]:
        results: list[list[int]] = top_candidates(queries, gallery, FIRST)[0].tolist()
        return results

    return lambda query: best()[query]


def _directions(embeddings: Tensor, name: str) -> Tensor:
    """Return `embeddings` (n, d) as float32 of length one."""
    if not embeddings.shape[1]:
        raise DiptychError(f"{name} embeddings have no dimensions.")
    # Divide by the largest value first, so that no square overflows or underflows.
    largest = embeddings.abs().amax(dim=1, keepdim=True)
    if not largest.all():
        row = int((largest == 0).flatten().nonzero()[0])
        raise DiptychError(f"{name} embedding {row} is zero: it has no direction, and no cosine with anything.")
    return normalize((embeddings / largest).float(), dim=1)
