"""Ranks and metrics against a naive twin that holds the whole matrix and loops."""

import math

import numpy as np
import pytest
import torch

from diptych.errors import DiptychError
from diptych.retrieval import metrics
from diptych.retrieval.metrics import (
    Found,
    average_metrics,
    chance_metrics,
    folds,
    mean_log_rank,
    metrics_from_ranks,
    ranks_from_embeddings,
    recall_at_k,
    retrieval_metrics,
)


def naive_ranks(image, text, image_of_caption):
    scores = image.astype(np.float64) @ text.astype(np.float64).T
    i2t = []
    for i in range(len(image)):
        best = max(scores[i, j] for j in range(len(text)) if image_of_caption[j] == i)
        i2t.append(1 + sum(scores[i, j] >= best for j in range(len(text)) if image_of_caption[j] != i))
    t2i = []
    for j, own in enumerate(image_of_caption):
        t2i.append(1 + sum(scores[i, j] >= scores[own, j] for i in range(len(image)) if i != own))
    return i2t, t2i


def naive_found(scores, right):
    """Rank, R-precision, average precision at R and tie of one query, from its list written out."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], right[item]))
    wrong_before = [sum(not right[other] for other in order[:place]) for place, item in enumerate(order) if right[item]]
    first = [right[item] for item in order[: sum(right)]]
    precisions = [sum(first[: place + 1]) / (place + 1) for place in range(len(first)) if first[place]]
    best = max(score for score, is_right in zip(scores, right, strict=True) if is_right)
    tied = any(score == best and not is_right for score, is_right in zip(scores, right, strict=True))
    return 1 + wrong_before[0], sum(first) / len(first), sum(precisions) / len(first), tied


def only_ranks(ranks):
    """Of queries with one right item each."""
    return Found.one_right(np.array(ranks), np.zeros(len(ranks), bool))


def ragged_gallery(seed):
    """Random counts of captions, in random order, and embeddings that are coarse (full of ties) in every other case."""
    random = np.random.default_rng(seed)
    images, dim = int(random.integers(1, 14)), int(random.integers(1, 6))
    counts = random.integers(1, 5, size=images)
    image_of_caption = random.permutation(np.repeat(np.arange(images), counts))
    image = random.normal(size=(images, dim)).astype(np.float32)
    text = random.normal(size=(counts.sum(), dim)).astype(np.float32) + image[image_of_caption]
    return (image, text, image_of_caption) if seed % 2 else (image.round(), text.round(), image_of_caption)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("block_scores", [1, 37, 4_000_000])
def test_ranks_equal_the_naive_ones_with_ties_and_ragged_captions_in_blocks_of_any_size(
    seed, block_scores, monkeypatch
):
    monkeypatch.setattr(metrics, "BLOCK_SCORES", block_scores)
    gallery = ragged_gallery(seed)
    ranks = ranks_from_embeddings(*gallery)
    assert [of_way.tolist() for of_way in ranks.ranks] == list(naive_ranks(*gallery))
    image, text, image_of_caption = (array.astype(np.float64) for array in gallery)
    scores, right = image @ text.T, image_of_caption == np.arange(len(image))[:, None]
    for found, lists, rights in ((ranks.i2t, scores, right), (ranks.t2i, scores.T, right.T)):
        for query, (of_query, its_right) in enumerate(zip(lists, rights, strict=True)):
            slow = naive_found(of_query, its_right.tolist())
            assert [values[query] for values in found] == pytest.approx(slow)


@pytest.mark.parametrize("seed", range(10))
def test_ranks_follow_a_permutation_of_the_images(seed):
    image, text, image_of_caption = ragged_gallery(seed)
    order = np.random.default_rng(seed).permutation(len(image))
    i2t, t2i = ranks_from_embeddings(image, text, image_of_caption).ranks
    moved_i2t, moved_t2i = ranks_from_embeddings(image[order], text, np.argsort(order)[image_of_caption]).ranks
    assert moved_i2t.tolist() == i2t[order].tolist()
    assert moved_t2i.tolist() == t2i.tolist()


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_ranks_do_not_change_with_the_scale_of_the_embeddings(scale):
    image, text, image_of_caption = ragged_gallery(1)
    expected = ranks_from_embeddings(image, text, image_of_caption)
    scaled = ranks_from_embeddings(image * np.float32(scale), text, image_of_caption)
    for found, before in zip(scaled, expected, strict=True):
        assert [values.tolist() for values in found] == [values.tolist() for values in before]


@pytest.mark.parametrize("images", [2, 33, 161])
def test_a_constant_embedding_scores_the_pessimistic_floor(images):
    constant = torch.nn.functional.normalize(torch.randn(1, 100, generator=torch.Generator().manual_seed(0)))
    image_of_caption = np.repeat(np.arange(images), 5)
    i2t, t2i = ranks_from_embeddings(constant.repeat(images, 1), constant.repeat(images * 5, 1), image_of_caption)
    assert set(i2t.rank.tolist()) == {1 + 5 * (images - 1)}
    assert set(t2i.rank.tolist()) == {images}
    for found in (i2t, t2i):
        assert found.tied.all()
        assert not found.r_precision.any()
        assert not found.average_precision.any()


def test_autocast_around_it_changes_nothing():
    image, text, image_of_caption = ragged_gallery(2)
    expected = ranks_from_embeddings(image, text, image_of_caption)
    with torch.autocast("cpu", torch.bfloat16):
        found = ranks_from_embeddings(image, text, image_of_caption)
    for way, before in zip(found, expected, strict=True):
        assert [values.tolist() for values in way] == [values.tolist() for values in before]


def test_a_copy_of_the_right_item_ties_with_it_wherever_it_lies_in_the_matrix():
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(200, 96, generator=generator))
    image = torch.cat([image, image])
    i2t, t2i = ranks_from_embeddings(image, image, np.arange(400)).ranks
    assert set(i2t.tolist()) == set(t2i.tolist()) == {2}


def test_the_ideal_embedding_scores_100_everywhere():
    image_of_caption = np.repeat(np.arange(20), 3)
    scores = retrieval_metrics(np.eye(20), np.eye(20)[image_of_caption], image_of_caption)
    perfect = {"recall@1": 100.0, "recall@5": 100.0, "recall@10": 100.0, "r_precision": 100.0, "map@r": 100.0}
    perfect |= {"median_rank": 1.0, "mean_rank": 1.0, "tied": 0.0}
    assert scores == {"i2t": perfect, "t2i": perfect, "rsum": 600.0}


def test_other_captions_of_the_same_image_never_count_against_its_hit():
    image = np.eye(2)
    text = np.array([[0.9, 0.0], [1.0, 0.0], [0.95, 0.0], [0.0, 1.0]])
    i2t, _ = ranks_from_embeddings(image, text, np.array([0, 0, 0, 1]))
    assert i2t.rank.tolist() == [1, 1]


def test_right_items_have_places_of_their_own():
    """The image's captions score 3, 2 and 1; another's 2.5: of the first three places two are right, the second not."""
    image, text = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [2.5, 9.0]])
    i2t, t2i = ranks_from_embeddings(image, text, np.array([0, 0, 0, 1]))
    assert i2t.r_precision.tolist() == pytest.approx([2 / 3, 1.0])
    assert i2t.average_precision.tolist() == pytest.approx([(1 + 2 / 3) / 3, 1.0])
    assert t2i.r_precision.tolist() == t2i.average_precision.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert not i2t.tied.any()


def test_half_precision_and_tensors_are_taken():
    image, text, image_of_caption = ragged_gallery(2)
    i2t, t2i = ranks_from_embeddings(torch.tensor(image).half(), text.astype(np.float16), image_of_caption).ranks
    expected = ranks_from_embeddings(image, text, image_of_caption).ranks
    assert (i2t.tolist(), t2i.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_metrics_are_recalls_in_percent_their_sum_means_and_the_middle_of_the_ranks():
    i2t = Found(np.array([1, 2, 6, 11]), np.array([1.0, 0.5, 0, 0]), np.array([1.0, 0.25, 0, 0]), np.arange(4) < 1)
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


def test_the_mean_log_rank_is_that_of_the_geometric_mean_of_both_ways():
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
    for way, founds in zip(("i2t", "t2i"), zip(*rounds, strict=True), strict=True):
        every = np.concatenate([found.rank for found in founds])
        for k in (1, 5, 10):
            assert chance[way][f"recall@{k}"] == pytest.approx(recall_at_k(every, k), abs=2)
        assert chance[way]["median_rank"] == np.median(every)
        assert chance[way]["mean_rank"] == pytest.approx(np.mean(every), rel=0.05)
        for name, values in (("r_precision", "r_precision"), ("map@r", "average_precision")):
            mean = 100 * np.mean([getattr(found, values) for found in founds])
            assert chance[way][name] == pytest.approx(mean, rel=0.08)
    assert chance["rsum"] == pytest.approx(np.mean([metrics_from_ranks(*both)["rsum"] for both in rounds]), abs=6)


def test_chance_of_a_gallery_smaller_than_k_is_certainty():
    assert chance_metrics(np.array([0]), 1)["rsum"] == 600.0


def test_nan_is_refused_with_the_row_that_holds_it():
    image = np.eye(3)
    image[1, 2] = np.nan
    with pytest.raises(DiptychError, match="image embedding 1 holds NaN or infinity"):
        retrieval_metrics(image, np.eye(3), np.arange(3))


@pytest.mark.parametrize(
    ("image", "text", "image_of_caption", "message"),
    [
        (np.eye(3), np.full((3, 3), np.inf), [0, 1, 2], "text embedding 0 holds NaN or infinity"),
        (np.eye(3), np.ones((3, 4)), [0, 1, 2], "3 dimensions and text embeddings 4"),
        (np.eye(3), np.eye(3), [0, 1], "3 text embeddings, but images of 2 captions"),
        (np.eye(3), np.eye(3), [0, 1, 3], "index 0 to 3 of 3 images"),
        (np.eye(3), np.eye(3), [0, 1, -1], "index -1 to 1 of 3 images"),
        (np.eye(3), np.eye(3), [0, 2, 2], "image 1 has no caption"),
        (np.zeros((0, 3)), np.eye(3), [0, 1, 2], r"not of shape \(0, 3\)"),
        (np.eye(3), np.ones(3), [0, 1, 2], r"not of shape \(3,\)"),
    ],
)
def test_embeddings_that_cannot_be_ranked_are_refused(image, text, image_of_caption, message):
    with pytest.raises(DiptychError, match=message):
        retrieval_metrics(image, text, np.array(image_of_caption))
