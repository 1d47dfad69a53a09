"""Stages as people are shown them: a re-ranked one where something re-ranks."""

from __future__ import annotations

import pytest

from diptych.config import Params
from diptych.retrieval.stages import shown

FIGURES = {"towers": 1, "qb_norm": 2, "reranked": 3}


@pytest.mark.parametrize(("itm", "expected"), [(1.0, FIGURES), (0.25, FIGURES), (0.0, {"towers": 1, "qb_norm": 3})])
def test_without_a_trained_fusion_the_last_stage_is_the_normalization(itm: float, expected: dict[str, int]) -> None:
    assert shown(FIGURES, Params.model_validate({"train": {"objectives": {"itm": itm}}})) == expected


@pytest.mark.parametrize("stages", [{}, {"embeddings": 1}, {"towers": 1, "qb_norm": 2}])
def test_what_has_no_re_ranked_stage_is_shown_as_it_is(stages: dict[str, int]) -> None:
    assert shown(stages, Params.model_validate({"train": {"objectives": {"itm": 0.0}}})) == stages
