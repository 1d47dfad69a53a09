"""Verdicts are computed, and can come out either direction."""

from __future__ import annotations

import pytest

from diptych.retrieval.ladder import in_words, is_better_than_chance, rungs, verdicts
from diptych.retrieval.uncertainty import Gain, Uncertainty

RSUMS = {"prior": 10.0, "image_only": 80.0, "words_bm25": 120.0, "ridge": 200.0, "cca": 150.0, "mlp_heads": 190.0}
MODEL = {"towers": 300.0, "qb_norm": 310.0, "shuffled_images": 308.0, "mlp_fusion": 311.0, "reranked": 320.0}


def judged(gain: Gain) -> Uncertainty:
    """All names have this gain over all others."""
    names = [*RSUMS, *MODEL]
    intervals = {
        name: {side: {"rsum": (RSUMS | MODEL)[name] + off} for side, off in (("low", -5), ("high", 5))}
        for name in names
    }
    return Uncertainty(intervals, {name: dict.fromkeys(names, gain) for name in names})


def metrics(**changes: float) -> dict[str, dict[str, float]]:
    return {name: {"rsum": rsum} for name, rsum in (RSUMS | MODEL | changes).items()}


@pytest.mark.parametrize(
    ("gain", "answer"),
    [
        (Gain(200.0, 180.0, 220.0, 0.001), "yes"),
        (Gain(-3.0, -5.0, -1.0, 0.001), "no"),
        (Gain(1.0, -2.0, 4.0, 0.4), "not sure"),
        (Gain(0.0, 0.0, 0.0, 1.0), "no"),
    ],
)
def test_the_answer_is_what_the_interval_says(gain: Gain, answer: str) -> None:
    found = verdicts(metrics(), judged(gain))
    assert [verdict.answer for verdict in found] == [answer] * 4
    assert f"The fusion helps: {answer}, by {gain.rsum:+.1f} RSUM" in in_words(found)[2]


def test_the_strongest_of_each_kind_is_the_one_to_beat() -> None:
    over = [verdict.over for verdict in verdicts(metrics(), judged(Gain(1.0, 0.5, 2.0, 0.01)))]
    assert over == [
        *("words: predicted, BM25", "frozen towers: ridge regression", "the model: query-bank normalization"),
        "control: an MLP in place of attention",
    ]
    others = metrics(image_only=130.0, mlp_heads=201.0, shuffled_images=312.0)
    over = [verdict.over for verdict in verdicts(others, judged(Gain(1.0, 0.5, 2.0, 0.01)))]
    assert over[:2] == ["images: the nearest lend captions", "frozen towers: MLP heads"]
    assert over[3] == "control: the fusion on other images"


@pytest.mark.parametrize(("chance", "better"), [(7.0, True), (314.9, True), (315.0, False), (500.0, False)])
def test_better_than_chance_is_what_lies_above_it_with_its_whole_interval(chance: float, better: bool) -> None:
    """The interval of the last stage begins at 315."""
    gain = judged(Gain(1.0, 0.5, 2.0, 0.01))
    assert is_better_than_chance(metrics(), gain, {"rsum": chance}) is better


def test_the_claim_for_towers_is_theirs_and_not_that_of_what_comes_after() -> None:
    names = [*RSUMS, *MODEL]
    uncertainty = judged(Gain(1.0, 0.5, 2.0, 0.01))
    uncertainty.gains["towers"] = dict.fromkeys(names, Gain(-3.0, -5.0, -1.0, 0.01))
    answers = {verdict.claim: verdict.answer for verdict in verdicts(metrics(), uncertainty)}
    assert answers["Towers that learn beat frozen ones"] == "no"
    assert answers["Joint modelling beats single-modality methods"] == "yes"


@pytest.mark.parametrize(
    ("names", "claims"), [(["towers", "qb_norm", "reranked"], ["The fusion helps"]), (["towers", "qb_norm"], [])]
)
def test_a_claim_without_anything_to_compare_with_is_left_out(names: list[str], claims: list[str]) -> None:
    found = verdicts({name: {"rsum": 1.0} for name in names}, judged(Gain(1.0, 0.5, 2.0, 0.01)))
    assert [verdict.claim for verdict in found] == claims


def test_where_nothing_is_reranked_the_fusion_is_claimed_nothing_for() -> None:
    normalized = {name: value for name, value in metrics().items() if name != "reranked"}
    found = verdicts(normalized, judged(Gain(0.0, 0.0, 0.0, 1.0)))
    assert [verdict.claim for verdict in found] == [
        "Joint modelling beats single-modality methods",
        "Towers that learn beat frozen ones",
    ]


def test_the_ladder_goes_from_chance_to_the_model() -> None:
    ladder = rungs(metrics(), judged(Gain(1.0, 0.5, 2.0, 0.01)), {"rsum": 7.0})
    assert [rung.rsum for rung in ladder] == [7.0, *RSUMS.values(), *MODEL.values()]
    assert (ladder[0].low, ladder[1].low, ladder[1].high) == (None, 5.0, 15.0)
    assert [rung.is_model for rung in ladder] == [False] * 7 + [True] * 2 + [False] * 2 + [True]
