"""A comparison says what the queries written out say, and is sure of a loss only where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.retrieval.comparison import K, compare, part_gains
from diptych.retrieval.metrics import metrics_from_ranks, recall_at_k
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.slices import Part
from diptych.retrieval.uncertainty import RESAMPLES, draws

IMAGES = 80
OWN = np.repeat(np.arange(IMAGES), np.random.default_rng(1).integers(1, 4, IMAGES))
LATE = np.arange(IMAGES) >= 50
PARTS = [Part("late", "1", "i2t", LATE), Part("late", "1", "t2i", LATE[OWN])]


def ranks(mean: float, late: float, seed: int = 0) -> Ranks:
    """Higher means are worse; `late` is that of the later images."""
    random = np.random.default_rng(seed)

    def found(there: np.ndarray) -> Outcomes:
        drawn = 1 + random.poisson(np.where(there, late, mean))
        return Outcomes.one_relevant(drawn, np.zeros(len(there), bool))

    return Ranks(found(LATE), found(LATE[OWN]))


def test_a_model_compared_with_itself_gains_and_loses_nothing() -> None:
    same = ranks(4, 8)
    found = compare(same, same, OWN, PARTS)
    assert found.rsum[:3] == (0.0, 0.0, 0.0)
    assert found.rsum.p_value == 1.0
    assert [(part.before - part.after, part.low, part.high) for part in found.parts] == [(0.0, 0.0, 0.0)] * 2


def test_the_gain_is_the_difference_of_the_rsums_and_a_clear_one_is_sure() -> None:
    worse, better = ranks(12, 12), ranks(3, 3)
    found = compare(worse, better, OWN, [])
    assert found.rsum.rsum == metrics_from_ranks(*better)["rsum"] - metrics_from_ranks(*worse)["rsum"]
    assert 0 < found.rsum.low < found.rsum.rsum < found.rsum.high
    assert found.after["interval"]["low"]["rsum"] < found.after["metrics"]["rsum"]
    assert compare(better, worse, OWN, []).rsum.high == pytest.approx(-found.rsum.low)


def test_a_loss_in_a_part_is_seen_though_the_whole_gains() -> None:
    found = compare(ranks(9, 4), ranks(2, 20), OWN, PARTS)
    assert found.rsum.rsum > -100
    assert all(part.high < 0 for part in found.parts)


def test_parts_have_the_recalls_and_intervals_of_their_queries_written_out() -> None:
    before, after = ranks(6, 10, seed=1), ranks(6, 12, seed=2)
    made = part_gains(before, after, OWN, PARTS)
    drawn = np.concatenate(list(draws(IMAGES, RESAMPLES, 0)))
    for part, one in zip(PARTS, made, strict=True):
        old, new = (getattr(both, part.direction).rank for both in (before, after))
        owner = np.arange(IMAGES) if part.direction == "i2t" else OWN
        assert (one.queries, one.before, one.after) == (
            part.queries.sum(),
            recall_at_k(old[part.queries], K),
            recall_at_k(new[part.queries], K),
        )
        differences = []
        for images in drawn[:1000]:
            queries = np.concatenate([np.flatnonzero((owner == image) & part.queries) for image in images])
            differences.append(recall_at_k(new[queries], K) - recall_at_k(old[queries], K))
        # Two parts share the five percent.
        assert (one.low, one.high) == pytest.approx(np.percentile(differences, [1.25, 98.75]), abs=4)
