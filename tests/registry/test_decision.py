"""A decision of the gate: its outcome, its reason in a sentence, and what is stored and shown of it."""

from __future__ import annotations

import json

import pytest

from diptych.registry.decision import Check, Decision, GuardComparison, JudgedComparison
from diptych.retrieval.comparison import Comparison
from diptych.retrieval.uncertainty import Gain

GOOD, SLOW, LOST = Check("it loads", True, "20 ms"), Check("it is fast", False, "9 s"), Check("no loss", False, "−3.0")
FIELDS = [
    *("decision", "name", "version", "champion", "summary", "data_md5", "evaluator_sha256", "gate_sha256"),
    *("checks", "metrics", "comparison", "guard_sets", "judged_queries"),
]
JUDGED = JudgedComparison("8" * 32, 40, 80.0, 77.5, -7.5, 2.5)


def decision(
    *checks: Check,
    champion: str | None = None,
    rsum: float | None = 130.06,
    gain: Gain | None = None,
    judged: JudgedComparison | None = None,
    **guard_sets: Gain,
):
    metrics = {} if rsum is None else {"reranked": {"rsum": rsum}}
    comparison = None if gain is None else Comparison({}, {}, gain, [])
    guarded = {name: GuardComparison("9" * 32, Comparison({}, {}, on, [])) for name, on in guard_sets.items()}
    hashes = "d" * 32, "e" * 64, "f" * 64
    return Decision("diptych", "2", champion, *hashes, list(checks), metrics, comparison, guarded, judged)


@pytest.mark.parametrize(
    ("checks", "accepted"), [((GOOD,), True), ((GOOD, GOOD), True), ((GOOD, SLOW), False), ((SLOW, GOOD), False)]
)
def test_a_version_is_accepted_if_it_passes_every_check(checks, accepted):
    assert decision(*checks).accepted is accepted
    assert decision(*checks).to_json()["decision"] == ("accepted" if accepted else "rejected")


def test_the_summary_of_a_first_version_is_its_rsum():
    assert decision(GOOD).summary == "RSUM 130.1, and there is no champion to compare with"


def test_the_summary_of_a_comparison_is_the_gain_with_its_interval():
    made = decision(GOOD, champion="1", gain=Gain(4.25, -0.31, 8.8, 0.9))

    assert made.summary == "RSUM +4.2 (-0.3 to +8.8) against version 1"


def test_the_summary_of_a_comparison_has_the_gain_on_each_guard_set():
    gain = Gain(4.25, -0.31, 8.8, 0.9)
    made = decision(GOOD, champion="1", gain=gain, old=Gain(-2.0, -5.0, 1.0, 0.2), rare=Gain(0.0, 0.0, 0.0, 1.0))

    assert made.summary == (
        "RSUM +4.2 (-0.3 to +8.8) against version 1, -2.0 (-5.0 to +1.0) on old, +0.0 (+0.0 to +0.0) on rare"
    )


def test_the_summary_of_a_comparison_has_the_gain_on_judged_queries():
    made = decision(GOOD, champion="1", gain=Gain(4.25, -0.31, 8.8, 0.9), judged=JUDGED)

    assert made.summary == (
        "RSUM +4.2 (-0.3 to +8.8) against version 1, recall@10 -2.5 (-7.5 to +2.5) on 40 judged queries"
    )


def test_the_summary_of_a_rejection_is_all_failed_checks_and_nothing_else():
    made = decision(GOOD, SLOW, LOST, champion="1", gain=Gain(4.25, -0.31, 8.8, 0.9))

    assert made.summary == "the gate refuses it: it is fast: 9 s; no loss: −3.0"


def test_history_stores_rounded_figures_of_the_version_and_of_the_gain():
    gain = Gain(1.23456, -0.00004, 2.0, 0.9)

    assert decision(GOOD, champion="1", gain=gain).figures() == {
        "rsum": 130.06,
        "gain": 1.2346,
        "gain_low": -0.0,
        "gain_high": 2.0,
    }
    assert decision(GOOD).figures() == {"rsum": 130.06}
    assert decision(SLOW, rsum=None).figures() == {}


def test_a_decision_is_stored_as_json():
    first = json.loads(json.dumps(decision(GOOD, SLOW).to_json()))
    gain = Gain(1.0, 0.0, 2.0, 0.9)
    second = json.loads(json.dumps(decision(GOOD, champion="1", gain=gain, judged=JUDGED, old=gain).to_json()))

    assert list(first) == FIELDS
    assert first["checks"][1] == {"name": "it is fast", "passed": False, "found": "9 s"}
    assert (first["champion"], first["comparison"], first["guard_sets"]) == (None, None, {})
    assert first["judged_queries"] is None
    assert second["comparison"]["rsum"]["high"] == 2.0
    assert second["guard_sets"]["old"]["md5"] == "9" * 32
    assert second["guard_sets"]["old"]["comparison"]["rsum"]["high"] == 2.0
    assert second["judged_queries"] == {
        "md5": "8" * 32,
        "queries": 40,
        "before": 80.0,
        "after": 77.5,
        "low": -7.5,
        "high": 2.5,
    }


@pytest.mark.parametrize(
    ("champion", "against"), [("1", "against version 1"), (None, "with no champion to compare with")]
)
def test_a_decision_is_shown_as_a_table_of_its_checks(champion, against):
    assert decision(GOOD, SLOW, champion=champion).render().splitlines() == [
        "# diptych version 2: rejected",
        "",
        f"Measured on dataset version dddddddddddd, {against}.",
        "",
        "| check | passed | found |",
        "|---|---|---|",
        "| it loads | yes | 20 ms |",
        "| it is fast | NO | 9 s |",
    ]
