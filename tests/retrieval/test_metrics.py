"""Metrics: figures by the ranks, in folds, and of random orders."""

import math

import numpy as np
import pytest

from diptych.retrieval.metrics import (
    average_metrics,
    chance_metrics,
    folds,
    mean_log_rank,
    metrics_from_ranks,
    recall_at_k,
    retrieval_metrics,
)
from diptych.retrieval.ranking import Outcomes, ranks_from_embeddings


def only_ranks(ranks):
    """Of queries with one relevant item each."""
    return Outcomes.one_relevant(np.array(ranks), np.zeros(len(ranks), bool))


def test_the_ideal_embedding_scores_100_everywhere():
    image_of_caption = np.repeat(np.arange(20), 3)
    scores = retrieval_metrics(np.eye(20), np.eye(20)[image_of_caption], image_of_caption)
    perfect = {"recall@1": 100.0, "recall@5": 100.0, "recall@10": 100.0, "r_precision": 100.0, "map@r": 100.0}
    perfect |= {"median_rank": 1.0, "mean_rank": 1.0, "tied": 0.0}
    assert scores == {"i2t": perfect, "t2i": perfect, "rsum": 600.0}


def test_metrics_are_recalls_in_percent_their_sum_means_and_the_middle_of_the_ranks():
    i2t = Outcomes(np.array([1, 2, 6, 11]), np.array([1.0, 0.5, 0, 0]), np.array([1.0, 0.25, 0, 0]), np.arange(4) < 1)
    scores = metrics_from_ranks(i2t, only_ranks([1, 5, 10, 10]))
    ranks = {"median_rank": 4.0, "mean_rank": 5.0, "tied": 25.0}
    assert scores["i2t"] == {
        "recall@1": 25.0,
        "recall@5": 50.0,
        "recall@10": 75.0,
        "r_precision": 37.5,
        "map@r": 31.25,
        **ranks,
    }
    assert scores["t2i"] == {
        "recall@1": 25.0,
        "recall@5": 50.0,
        "recall@10": 100.0,
        "r_precision": 25.0,
        "map@r": 25.0,
        "median_rank": 7.5,
        "mean_rank": 6.5,
        "tied": 0.0,
    }
    assert scores["rsum"] == 325.0


def test_recall_beyond_the_gallery_is_full():
    assert recall_at_k(np.array([1, 2, 3]), 50) == 100.0


def test_5000_images_are_also_ranked_in_five_folds_of_1000():
    random = np.random.default_rng(0)
    image = random.normal(size=(5_000, 4)).astype(np.float32)
    image_of_caption = np.concatenate([np.arange(5_000), np.arange(0, 5_000, 3)])
    text = image[image_of_caption] + random.normal(size=(len(image_of_caption), 4)).astype(np.float32)
    scores = retrieval_metrics(image, text, image_of_caption)
    parts = []
    for start in range(0, 5_000, 1_000):
        captions = [j for j, own in enumerate(image_of_caption) if start <= own < start + 1_000]
        fold = image[start : start + 1_000], text[captions], image_of_caption[captions] - start
        parts.append(retrieval_metrics(*fold))
    assert scores["folds_1k"] == average_metrics(parts)
    assert scores["folds_1k"]["t2i"]["recall@1"] > scores["t2i"]["recall@1"]


def test_galleries_of_another_size_have_no_folds():
    assert list(folds(np.arange(4_999), 4_999)) == []


def test_the_mean_log_rank_is_that_of_the_geometric_mean_of_both_directions():
    i2t, t2i = np.array([1, 4]), np.array([1, 1, 27])
    assert mean_log_rank(i2t, t2i) == pytest.approx(math.log(2 * 3) / 2)
    assert mean_log_rank(np.array([1]), np.array([1])) == 0


def test_chance_is_what_random_orders_score_on_average():
    random = np.random.default_rng(0)
    image_of_caption = np.repeat(np.arange(12), [1, 2, 3, 4] * 3)
    rounds = [
        ranks_from_embeddings(random.normal(size=(12, 9)), random.normal(size=(30, 9)), image_of_caption)
        for _ in range(400)
    ]
    chance = chance_metrics(image_of_caption, 12)
    for direction, founds in zip(("i2t", "t2i"), zip(*rounds, strict=True), strict=True):
        every = np.concatenate([found.rank for found in founds])
        for k in (1, 5, 10):
            assert chance[direction][f"recall@{k}"] == pytest.approx(recall_at_k(every, k), abs=2)
        assert chance[direction]["median_rank"] == np.median(every)
        assert chance[direction]["mean_rank"] == pytest.approx(np.mean(every), rel=0.05)
        for name, values in (("r_precision", "r_precision"), ("map@r", "average_precision")):
            mean = 100 * np.mean([getattr(found, values) for found in founds])
            assert chance[direction][name] == pytest.approx(mean, rel=0.08)
    assert chance["rsum"] == pytest.approx(np.mean([metrics_from_ranks(*both)["rsum"] for both in rounds]), abs=6)


def test_chance_of_a_gallery_smaller_than_k_is_certainty():
    assert chance_metrics(np.array([0]), 1)["rsum"] == 600.0
