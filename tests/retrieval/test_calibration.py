"""A calibration gives the share of right first results among queries with such scores."""

from __future__ import annotations

import numpy as np
import pytest
from calibrated import chance, drawn, fitted

from diptych.retrieval.calibration import FirstResults, calibrate, probabilities, reliability


def test_the_coefficients_that_made_the_results_are_found() -> None:
    calibration = fitted()
    assert (calibration.intercept, calibration.score, calibration.margin) == pytest.approx((-1, 0.5, 2), abs=0.08)
    assert calibration.images == 40


def test_probabilities_are_those_of_other_queries_too() -> None:
    results = drawn(20_000, seed=1)
    probability = probabilities(fitted(), results.scores)
    assert probability == pytest.approx(chance(results.scores), abs=0.03)
    for group in reliability(probability, results.right):
        assert group.right == pytest.approx(group.expected, abs=0.04)


def test_a_reliability_curve_has_equal_groups_in_the_order_of_their_probability() -> None:
    curve = fitted(1005).reliability
    assert sum(group.queries for group in curve) == 1005
    assert {group.queries for group in curve} == {100, 101}
    assert [group.expected for group in curve] == sorted(group.expected for group in curve)


@pytest.mark.parametrize("right", [True, False])
def test_without_both_outcomes_there_is_no_calibration(right: bool) -> None:
    results = drawn(50, seed=0)
    assert calibrate(results._replace(right=np.full(50, right)), 40) is None


def test_equal_scores_and_a_single_image_are_no_trouble() -> None:
    results = FirstResults(np.ones((8, 1), np.float32), np.arange(8) % 2 == 0)
    calibration = calibrate(results, 1)
    assert calibration is not None
    assert probabilities(calibration, results.scores) == pytest.approx(np.full(8, 0.5), abs=1e-6)
