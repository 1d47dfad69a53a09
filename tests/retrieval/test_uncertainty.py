"""The bootstrap: the same figures as of resamples written out, intervals that hold what they should."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from scipy import stats

from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.uncertainty import bootstrap, draws, gain, gain_over_folds, interval


def made(images: int, seed: int, hardest: int = 40) -> tuple[Ranks, np.ndarray]:
    """Ranks of no model, one to four captions an image."""
    generator = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), generator.integers(1, 5, images))
    i2t, t2i = (generator.integers(1, hardest, queries) for queries in (images, len(owner)))
    r_precision, average_precision = generator.random((2, images))
    both = Outcomes(i2t, r_precision, average_precision, generator.random(images) < 0.2)
    return Ranks(both, one_relevant(t2i)), owner


def one_relevant(ranks: np.ndarray) -> Outcomes:
    return Outcomes.one_relevant(ranks, ranks % 3 == 0)


def of_queries(found: Outcomes, queries: np.ndarray) -> Outcomes:
    return Outcomes(*(values[queries] for values in found))


@pytest.mark.parametrize(("images", "hardest"), [(1, 5), (2, 40), (7, 12), (60, 40), (400, 2000)])
def test_figures_are_those_of_each_resample_written_out(images: int, hardest: int) -> None:
    (i2t, t2i), owner = made(images, seed=images, hardest=hardest)
    samples = bootstrap({"a": Ranks(i2t, t2i)}, owner, resamples=50, seed=3)["a"]
    every = np.concatenate(list(draws(images, 50, 3)))
    assert every.shape == (50, images)
    for number, drawn in enumerate(every):
        captions = np.concatenate([np.flatnonzero(owner == image) for image in drawn])
        slow = metrics_from_ranks(of_queries(i2t, drawn), of_queries(t2i, captions))
        assert samples["rsum"][number] == pytest.approx(slow["rsum"], abs=1e-9)
        for direction in ("i2t", "t2i"):
            assert {name: values[number] for name, values in samples[direction].items()} == pytest.approx(
                slow[direction]
            )


def test_medians_hold_where_one_image_has_most_of_the_captions() -> None:
    generator = np.random.default_rng(0)
    owner = np.repeat(np.arange(60), np.where(np.arange(60) == 7, 400, 1))
    t2i = np.where(owner == 7, generator.integers(30, 60, len(owner)), generator.integers(1, 9, len(owner)))
    samples = bootstrap({"a": Ranks(one_relevant(t2i[:60]), one_relevant(t2i))}, owner, resamples=80, seed=1)["a"]
    for number, drawn in enumerate(np.concatenate(list(draws(60, 80, 1)))):
        captions = np.concatenate([np.flatnonzero(owner == image) for image in drawn])
        assert samples["t2i"]["median_rank"][number] == np.median(t2i[captions])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, owner = made(30, seed=1)
    whole = bootstrap({"a": ranks}, owner, resamples=40)["a"]["rsum"]
    monkeypatch.setattr("diptych.retrieval.uncertainty.IMAGES_AT_ONCE", 30 * 7)
    assert np.array_equal(bootstrap({"a": ranks}, owner, resamples=40)["a"]["rsum"], whole)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 samples of queries, each of which is found with a chance of 0.3; captions of an image succeed together."""
    generator, held = np.random.default_rng(0), 0
    owner = np.repeat(np.arange(150), 5)
    for number in range(200):
        found = generator.random(150) < 0.3
        ranks = np.where(found, 1, 99)
        both = Ranks(one_relevant(ranks), one_relevant(ranks[owner]))
        ends = interval(bootstrap({"a": both}, owner, resamples=400, seed=number)["a"])
        held += ends["low"]["t2i"]["recall@1"] <= 30.0 <= ends["high"]["t2i"]["recall@1"]
    assert 0.90 <= held / 200 <= 0.99


def test_a_gain_is_judged_query_by_query() -> None:
    """A gain of one rank at a few queries is sure, though it is small beside what the queries differ by."""
    (i2t, t2i), owner = made(300, seed=5)
    better = i2t._replace(rank=np.where(i2t.rank == 2, 1, i2t.rank))
    samples = bootstrap({"better": Ranks(better, t2i), "worse": Ranks(i2t, t2i)}, owner, resamples=2000)
    difference = metrics_from_ranks(better, t2i)["rsum"] - metrics_from_ranks(i2t, t2i)["rsum"]
    judged = gain(samples["better"], samples["worse"], difference)
    assert 0 < judged.low < judged.rsum < judged.high
    assert judged.p_value < 0.01
    ends = interval(samples["better"])
    assert ends["high"]["rsum"] - ends["low"]["rsum"] > 5 * difference
    nothing = gain(samples["worse"], samples["worse"], 0.0)
    assert nothing == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("trained", [5, 3, 2])
def test_a_gain_over_some_of_five_folds_has_the_interval_of_nadeau_and_bengio(trained: int) -> None:
    """The size of a test part over that of the rest is the same, whether or not all folds are trained on."""
    differences = np.random.default_rng(0).normal(2.0, 1.5, (2, trained))
    found = gain_over_folds(differences, folds=5)
    by_fold = [(one + other) / 2 for one, other in zip(*differences, strict=True)]
    variance = statistics.variance(by_fold) * (1 / trained + (1 / 5) / (4 / 5))
    expected = stats.t(df=trained - 1, loc=statistics.mean(by_fold), scale=variance**0.5)
    assert found.rsum == pytest.approx(statistics.mean(by_fold))
    assert (found.low, found.high) == pytest.approx(expected.interval(0.95))
    assert found.p_value == pytest.approx(2 * expected.cdf(0.0))


def test_folds_that_agree_exactly_are_sure() -> None:
    assert gain_over_folds(np.full((1, 5), 3.0), folds=5) == (3.0, 3.0, 3.0, 0.0)
    assert gain_over_folds(np.zeros((1, 5)), folds=5) == (0.0, 0.0, 0.0, 1.0)
