"""What a calibration promises is compared with other queries, with intervals over images."""

from __future__ import annotations

import numpy as np
import pytest
from calibrated import drawn, fitted

from diptych.retrieval.calibration import GROUPS, FirstResults, probabilities
from diptych.retrieval.trust import examine

IMAGE = np.arange(5000) // 5


def test_shares_are_those_that_one_counts() -> None:
    results, calibration = drawn(5000, seed=2), fitted()
    good = probabilities(calibration, results.scores) >= 0.7
    trust = examine(calibration, results, IMAGE, threshold=0.7)

    assert (trust.good, trust.weak) == (good.sum(), (~good).sum())
    assert trust.precision.share == results.right[good].mean()
    assert trust.weak_wrong.share == (~results.right)[~good].mean()
    assert trust.precision.low < results.right[good].mean() < trust.precision.high
    assert trust.to_json()["precision"]["share"] == trust.precision.share


def test_the_interval_is_that_of_the_binomial_where_queries_are_independent() -> None:
    results, calibration = drawn(5000, seed=2), fitted()
    trust = examine(calibration, results, np.arange(5000))
    share = results.right[probabilities(calibration, results.scores) >= 0.5].mean()
    deviation = np.sqrt(share * (1 - share) / trust.good)
    assert (trust.precision.high - trust.precision.low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)


def test_a_calibration_that_holds_has_its_groups_within_their_intervals() -> None:
    trust = examine(fitted(), drawn(5000, seed=3), IMAGE)
    within = [right.low <= expected <= right.high for expected, right in trust.groups]
    assert len(within) == GROUPS
    assert sum(within) >= GROUPS - 1


def test_one_that_does_not_hold_is_seen() -> None:
    results = drawn(5000, seed=3)
    wrong = FirstResults(results.scores, np.zeros(5000, bool))
    trust = examine(fitted(), wrong, IMAGE)
    assert trust.precision.share == 0
    assert trust.weak_wrong.share == 1
    assert not any(right.low <= expected <= right.high for expected, right in trust.groups[2:])


def test_without_good_matches_nothing_is_known_of_them() -> None:
    trust = examine(fitted(), drawn(50, seed=3), np.arange(50), threshold=1.0)
    assert trust.good == 0
    assert trust.precision.describe() == "unknown, since there are none"
    assert list(trust.precision) == [None, 0.0, 1.0]
