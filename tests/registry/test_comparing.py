"""On judged queries a challenger is compared with the champion query by query."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.config import Gate, JudgedQueries
from diptych.errors import DiptychError
from diptych.registry.comparing import Queries, compare_on_judged_queries, compare_with_champion, loss_checks
from diptych.registry.measuring import Gallery, Measured
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.uncertainty import RESAMPLES, draws

OWN = np.arange(5)
JUDGED = JudgedQueries(path="guards/judged", md5=f"{'0' * 32}.dir")


def test_the_gain_on_judged_queries_and_its_interval_are_those_written_out() -> None:
    before = np.tile([1, 2, 3, 10, 11, 50.0, np.inf, 4], 3)
    after = np.tile([1, 11, np.inf, 9, 10, 60.0, 1000, 99], 3)
    found = compare_on_judged_queries(before, after, JUDGED)

    assert found[:4] == (f"{'0' * 32}.dir", 24, 62.5, 37.5)
    drawn = np.concatenate(list(draws(24, RESAMPLES, 0)))
    gains = 100 * ((after <= 10)[drawn].mean(axis=1) - (before <= 10)[drawn].mean(axis=1))
    assert [found.low, found.high] == pytest.approx(np.percentile(gains, [2.5, 97.5]).tolist())


def test_a_query_whose_right_image_has_left_the_collection_does_not_count() -> None:
    here = [1.0] * 20
    found = compare_on_judged_queries(np.array([np.nan, 1, *here]), np.array([1, np.nan, *here]), JUDGED)

    assert found == (f"{'0' * 32}.dir", 20, 100.0, 100.0, 0.0, 0.0)


@pytest.mark.parametrize("kept", [0, 1, 19])
def test_where_too_few_queries_are_left_in_the_collection_it_is_an_error(kept: int) -> None:
    before, after = np.ones(30), np.full(30, 11.0)
    after[kept:] = np.nan

    message = rf"^params\.yaml: gate\.judged_queries: {kept} queries .* collection dataset; at least 20 are needed"
    with pytest.raises(DiptychError, match=message):
        compare_on_judged_queries(before, after, JUDGED)


def test_without_guard_sets_the_losses_on_the_test_split_are_checked() -> None:
    outcomes = Outcomes.one_relevant(np.ones(len(OWN), np.int64), np.zeros(len(OWN), bool))
    same = Measured(Ranks(outcomes, outcomes), {}, {})
    both = compare_with_champion(same, same, Queries(Gallery(OWN, 5, []), [], [], []))

    assert len(loss_checks(both, Gate())) == 2
