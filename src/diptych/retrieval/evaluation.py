"""The retrieval of a gallery, measured: what the towers rank, raw and normalized, and what the fusion makes of it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from diptych.model.dual_encoder import DualEncoder
from diptych.model.querybank import QueryBank
from diptych.retrieval.embedding import Embedded
from diptych.retrieval.metrics import (
    Metrics,
    Ranks,
    average_metrics,
    folds,
    metrics_from_ranks,
    ranks_from_embeddings,
    recall_at_k,
)
from diptych.retrieval.reranking import Candidates, Weights, match_logits, reranked_ranks

CURVE_KS = range(1, 51)


class Evaluation(NamedTuple):
    """A gallery's figures and what they come from."""

    candidates: Candidates
    ranks: dict[str, Ranks]
    """By stage: "towers" by the cosine, "normalized" less the items' biases, and these "reranked" by the fusion."""
    metrics: dict[str, Metrics]
    """By stage; what reports/metrics.json holds."""


def evaluate_gallery(
    model: DualEncoder, embedded: Embedded, querybank: QueryBank, *, top_k: int, weights: Weights, device: torch.device
) -> Evaluation:
    """Ranks by the towers, normalizes by `querybank`, and re-ranks the `top_k` with the fusion at `weights`; 5,000
    images also in five folds.
    """
    embedded = embedded.normalized(querybank, model.logit_scale.item())
    evaluation = _evaluate(model, embedded, top_k, weights, device)
    parts = [
        _evaluate(model, embedded.part(*fold), top_k, weights, device).metrics
        for fold in folds(embedded.image_of_caption, len(embedded.image))
    ]
    if parts:
        for stage, metrics in evaluation.metrics.items():
            metrics["folds_1k"] = average_metrics([part[stage] for part in parts])
    return evaluation


def recall_curves(evaluation: Evaluation) -> list[tuple[str, str, int, float]]:
    """Rows of direction, stage, k from 1 to 50, and recall@k in percent."""
    return [
        (direction, stage, k, recall_at_k(found.rank, k))
        for stage, both in evaluation.ranks.items()
        for direction, found in zip(("i2t", "t2i"), both, strict=True)
        for k in CURVE_KS
    ]


def _evaluate(model: DualEncoder, embedded: Embedded, top_k: int, weights: Weights, device: torch.device) -> Evaluation:
    candidates = match_logits(model, embedded, top_k, device=device)
    ranks = {
        "towers": ranks_from_embeddings(embedded.image, embedded.text, embedded.image_of_caption),
        "normalized": Ranks(candidates.i2t.found, candidates.t2i.found),
        "reranked": reranked_ranks(candidates, model.logit_scale.item(), weights),
    }
    return Evaluation(candidates, ranks, {stage: metrics_from_ranks(*both) for stage, both in ranks.items()})
