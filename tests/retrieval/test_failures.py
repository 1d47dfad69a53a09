"""Hubs, confusions and the worst ranks against what they are when written out."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.retrieval.evaluation import Evaluation
from diptych.retrieval.failures import SHOWN, confusions, find_failures, hubs
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.similarities import Similarities

NO_PAIRS = Similarities(np.zeros(0, np.int64), np.zeros(0, np.int64))


def no_lists(k: int) -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("nothing here looks deeper")


def one_relevant(ranks: np.ndarray) -> Outcomes:
    return Outcomes.one_relevant(ranks, np.zeros(len(ranks), bool))


def test_hubs_are_counted_over_all_queries() -> None:
    lists = [[0, 1, 2], [0, 3], [0, 1], [4, 0]]
    found = hubs(lambda query: lists[query], 4, 6)
    assert found.occurrences.tolist() == [4, 2, 1, 1, 1, 0]
    assert found.expected == 9 / 6
    assert found.never == pytest.approx(100 / 6)
    assert found.most(3) == [0, 1, 2]
    long = [list(range(20))] * 2
    assert hubs(lambda query: long[query], 2, 20).occurrences.tolist() == [2] * 10 + [0] * 10


def test_confusions_are_pairs_of_images_whichever_is_taken_for_the_other() -> None:
    own = np.array([0, 0, 1, 2, 2, 3])
    first = [[1, 0], [0, 1], [0, 1], [3, 2], [3, 2], [2, 3]]
    assert confusions(lambda caption: first[caption], own) == [(2, 3, 3), (0, 1, 2)]
    assert confusions(lambda caption: [int(own[caption])], own) == []


def test_what_is_missed_most_are_the_worst_ranks_beyond_the_first_ten() -> None:
    own = np.arange(12)
    worst = np.array([1, 10, 11, 40, 11, 300, 1, 1, 1, 1, 1, 1])
    ranks = {"embeddings": Ranks(one_relevant(worst), one_relevant(np.arange(12) + 5))}
    evaluation = Evaluation(ranks, {}, (lambda image: [0], lambda caption: [0]), no_lists, NO_PAIRS)
    found = find_failures(evaluation, own, ["word"] * 12, {})
    assert found.missed["i2t"] == [(5, 300), (3, 40), (2, 11), (4, 11)]
    assert found.missed["t2i"] == [(11, 16), (10, 15), (9, 14), (8, 13), (7, 12), (6, 11)]
    assert found.to_json()["missed"]["i2t"][0] == {"query": 5, "rank": 300}


def test_failures_are_of_the_last_stage_and_name_near_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.retrieval.slices.FEWEST", 1)
    own = np.array([0, 0, 1, 2])
    good, bad = one_relevant(np.array([1, 1, 1])), one_relevant(np.array([9, 9, 9]))
    ranks = {"towers": Ranks(good, good), "reranked": Ranks(bad, one_relevant(np.array([9, 9, 9, 1])))}
    images = [[1], [1], [0], [2]]
    evaluation = Evaluation(ranks, {}, (lambda image: [image], lambda caption: images[caption]), no_lists, NO_PAIRS)
    hashes = ["ff00000000000000", "fe00000000000001", "00000000ffffffff"]
    failures = find_failures(evaluation, own, ["a", "a b", "a b c", "a"], {}, hashes)
    assert failures.confusions == [(0, 1, 3, True)]
    content = failures.to_json()
    assert content["confusions"] == [{"image": 0, "other": 1, "captions": 3, "near_duplicates": True}]
    assert content["hubs"]["t2i"]["most"][0] == {"item": 1, "queries": 2}
    assert len(content["hubs"]["i2t"]["most"]) <= SHOWN
    assert [part["label"] for part in content["slices"]] == ["1", "2", "3"]
    assert content["slices"][0]["recalls"]["recall@10"][0] == 100.0
    apart = find_failures(evaluation, own, ["a"] * 4, {}, ["0" * 16, "f" * 16, "0" * 16])
    assert not apart.confusions[0].near_duplicates
