"""On judged queries a challenger is compared with the champion query by query."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.config import Gate
from diptych.registry.comparing import Queries, compare_with_champion, loss_checks
from diptych.registry.decision import JudgedComparison
from diptych.registry.measuring import Gallery, Measured
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.uncertainty import RESAMPLES, draws

OWN = np.arange(5)
GATE = Gate.model_validate({"judged_queries": {"folder": "guards/judged", "md5": f"{'0' * 32}.dir"}})


def measured(*judged: float) -> Measured:
    """What finds all of a test split, and has these ranks on judged queries."""
    outcomes = Outcomes.one_relevant(np.ones(len(OWN), np.int64), np.zeros(len(OWN), bool))
    return Measured(Ranks(outcomes, outcomes), {}, {}, np.array(judged) if judged else None)


def compared(champion: Measured, challenger: Measured, gate: Gate = GATE) -> JudgedComparison | None:
    return compare_with_champion(champion, challenger, Queries(Gallery(OWN, 5, []), [], [], []), gate).judged_queries


def test_the_gain_on_judged_queries_and_its_interval_are_those_written_out() -> None:
    before, after = np.array([1, 2, 3, 10, 11, 50.0, np.inf, 4]), np.array([1, 11, np.inf, 9, 10, 60.0, 1000, 99])
    found = compared(measured(*before), measured(*after))

    assert found is not None
    assert found[:4] == (f"{'0' * 32}.dir", 8, 62.5, 37.5)
    drawn = np.concatenate(list(draws(8, RESAMPLES, 0)))
    gains = 100 * ((after <= 10)[drawn].mean(axis=1) - (before <= 10)[drawn].mean(axis=1))
    assert [found.low, found.high] == pytest.approx(np.percentile(gains, [2.5, 97.5]).tolist())


def test_a_query_whose_right_image_has_left_the_collection_does_not_count() -> None:
    found = compared(measured(np.nan, 1.0, 1.0), measured(1.0, np.nan, 12.0))

    assert found == (f"{'0' * 32}.dir", 1, 100.0, 0.0, -100.0, -100.0)


def test_without_judged_queries_there_is_no_check_of_them() -> None:
    same = measured()
    both = compare_with_champion(same, same, Queries(Gallery(OWN, 5, []), [], [], []), Gate())

    assert both.judged_queries is None
    assert len(loss_checks(both, Gate())) == 2
