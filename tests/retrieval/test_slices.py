"""Slices against the recalls and resamples of their queries written out."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.retrieval.metrics import recall_at_k
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.slices import cut, parts, slices
from diptych.retrieval.uncertainty import RESAMPLES, draws


def one_relevant(ranks: np.ndarray) -> Outcomes:
    return Outcomes.one_relevant(ranks, np.zeros(len(ranks), bool))


@pytest.fixture
def ranks() -> tuple[Ranks, np.ndarray]:
    """Of images with one to four captions; those of the later images are found less often."""
    random = np.random.default_rng(0)
    own = np.repeat(np.arange(60), random.integers(1, 5, 60))
    hard = np.arange(60) >= 40
    return Ranks(*(one_relevant(1 + random.poisson(np.where(late, 15, 2))) for late in (hard, hard[own]))), own


def test_recalls_and_intervals_are_those_of_the_queries_written_out(ranks: tuple[Ranks, np.ndarray]) -> None:
    found, own = ranks
    lengths = 1 + np.arange(len(own)) % 7
    captions = ["word " * length for length in lengths]
    made = slices(found, own, parts(own, captions, {"late": (np.arange(60) >= 40).astype(float)}))
    assert [(one.attribute, one.label, one.direction) for one in made[:4]] == [
        ("late", "0", "i2t"),
        ("late", "1", "i2t"),
        ("late", "0", "t2i"),
        ("late", "1", "t2i"),
    ]
    drawn = np.concatenate(list(draws(60, RESAMPLES, 0)))
    for one in (made[1], made[3], made[4]):
        ranks_of_direction = getattr(found, one.direction).rank
        owner = np.arange(60) if one.direction == "i2t" else own
        low, _, high = one.label.partition(" to ")
        there = owner >= 40 if one.attribute == "late" else (lengths >= float(low)) & (lengths <= float(high or low))
        assert one.queries == there.sum()
        value, *ends = one.recalls["recall@10"]
        assert value == recall_at_k(ranks_of_direction[there], 10)
        samples = []
        for images in drawn[:400]:
            queries = np.concatenate([np.flatnonzero((owner == image) & there) for image in images])
            samples.append(recall_at_k(ranks_of_direction[queries], 10) if len(queries) else np.nan)
        assert ends == pytest.approx(np.nanpercentile(samples, [2.5, 97.5]), abs=4)


def test_what_is_clearly_worse_than_all_is_marked(ranks: tuple[Ranks, np.ndarray]) -> None:
    found, own = ranks
    made = slices(found, own, parts(own, ["word"] * len(own), {"late": (np.arange(60) >= 40).astype(float)}))
    assert [one.worse for one in made] == [False, True, False, True]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 1, 1], []),
        ([1, 2, 2, 5], ["1", "2", "5"]),
        (list(range(9)), ["0 to 2", "3 to 5", "6 to 8"]),
        ([1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5], ["1", "2 to 5"]),
        ([0.5, 0.75, 1, 1.333333, 1.5, 2], ["0.5 to 0.75", "1 to 1.33", "1.5 to 2"]),
    ],
)
def test_values_are_cut_into_about_equal_parts(values: list[float], labels: list[str]) -> None:
    cuts = cut(np.array(values, float))
    assert [label for label, _ in cuts] == labels
    if cuts:
        assert (np.sum([there for _, there in cuts], axis=0) == 1).all()


def test_slices_of_few_images_are_left_out(ranks: tuple[Ranks, np.ndarray]) -> None:
    found, own = ranks
    nine, ten = np.repeat([0.0, 1.0], [51, 9]), np.repeat([0.0, 1.0], [50, 10])
    captions = ["a b c" if image < 9 else "a b c d" for image in own]
    made = slices(found, own, parts(own, captions, {"nine": nine, "ten": ten}))
    assert {(one.attribute, one.label) for one in made} == {
        ("nine", "0"),
        ("ten", "0"),
        ("ten", "1"),
        ("words in the caption", "4"),
    }


def test_what_is_not_known_is_in_no_part() -> None:
    for values in ([np.nan, 1, 2, 2, np.nan], [np.nan, *range(30)]):
        given = np.array(values, float)
        assert (np.sum([there for _, there in cut(given)], axis=0) == ~np.isnan(given)).all()
    assert cut(np.full(4, np.nan)) == []


def test_slices_by_what_images_show_are_those_of_the_most_frequent_categories(
    ranks: tuple[Ranks, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, own = ranks
    monkeypatch.setattr("diptych.retrieval.slices.CATEGORIES", 3)
    objects: list[list[str] | None] = [["person", "dog"] if image % 3 == 0 else ["person"] for image in range(60)]
    objects[0] = None
    objects[1:5] = [["person", "cat", "cat"]] * 4
    objects[5:30] = [[*(there or ()), "tree"] for there in objects[5:30]]
    made = slices(found, own, parts(own, ["word"] * len(own), {}, objects))
    shown = [(one.label, one.direction, one.queries) for one in made if one.attribute == "an image that shows"]
    dogs, trees = np.arange(6, 60, 3), np.arange(5, 30)
    # Of persons there are none without, of cats only four: no slice. The dog at 3 is a cat's image now.
    assert shown == [
        ("tree", "i2t", 25),
        ("dog", "i2t", len(dogs)),
        ("tree", "t2i", int(np.isin(own, trees).sum())),
        ("dog", "t2i", int(np.isin(own, dogs).sum())),
    ]
    (dog,) = (one for one in made if (one.label, one.direction) == ("dog", "t2i"))
    assert dog.recalls["recall@10"][0] == recall_at_k(found.t2i.rank[np.isin(own, dogs)], 10)
    counted = [
        (one.label, one.queries) for one in made if one.attribute == "objects in the image" and one.direction == "i2t"
    ]
    assert sum(queries for _, queries in counted) == 59
