"""Stages of ranking: their labels, and which of them people are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from diptych.config import Params

T = TypeVar("T")

STAGE_LABELS = {
    "towers": "towers",
    "qb_norm": "query-bank normalization",
    "reranked": "re-ranked",
    "embeddings": "embeddings",
}
"""Labels of the stages in metrics.json."""


def shown(by_stage: Mapping[str, T], params: Params) -> dict[str, T]:
    """Return `by_stage` as people are shown it: without a re-ranked stage where no fusion is trained.

    Programs read the last stage by the name "reranked", so the files always have it. Where nothing is re-ranked it is
    the query-bank normalization, and takes the place of that.
    """
    stages = dict(by_stage)
    if not params.train.objectives.itm and "reranked" in stages:
        stages["qb_norm"] = stages.pop("reranked")
    return stages
