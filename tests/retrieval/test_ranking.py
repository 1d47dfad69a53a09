"""Ranks against a naive twin that holds the whole matrix and loops."""

import numpy as np
import pytest
import torch

from diptych.errors import DiptychError
from diptych.retrieval import ranking
from diptych.retrieval.ranking import ranks_from_embeddings


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


def naive_outcome(scores, relevant):
    """Rank, R-precision, average precision at R and tie of one query, from its list written out."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], relevant[item]))
    irrelevant_before = [
        sum(not relevant[other] for other in order[:position]) for position, item in enumerate(order) if relevant[item]
    ]
    first = [relevant[item] for item in order[: sum(relevant)]]
    precisions = [sum(first[: end + 1]) / (end + 1) for end in range(len(first)) if first[end]]
    best = max(score for score, is_right in zip(scores, relevant, strict=True) if is_right)
    tied = any(score == best and not is_right for score, is_right in zip(scores, relevant, strict=True))
    return 1 + irrelevant_before[0], sum(first) / len(first), sum(precisions) / len(first), tied


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
    monkeypatch.setattr(ranking, "BLOCK_SCORES", block_scores)
    gallery = ragged_gallery(seed)
    ranks = ranks_from_embeddings(*gallery)
    assert [ranks_of_direction.tolist() for ranks_of_direction in ranks.ranks] == list(naive_ranks(*gallery))
    image, text, image_of_caption = (array.astype(np.float64) for array in gallery)
    scores, relevant = image @ text.T, image_of_caption == np.arange(len(image))[:, None]
    for outcomes, lists, relevances in ((ranks.i2t, scores, relevant), (ranks.t2i, scores.T, relevant.T)):
        for query, (of_query, its_right) in enumerate(zip(lists, relevances, strict=True)):
            slow = naive_outcome(of_query, its_right.tolist())
            assert [values[query] for values in outcomes] == pytest.approx(slow)


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
    for direction, before in zip(found, expected, strict=True):
        assert [values.tolist() for values in direction] == [values.tolist() for values in before]


def test_a_copy_of_the_right_item_ties_with_it_wherever_it_lies_in_the_matrix():
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(200, 96, generator=generator))
    image = torch.cat([image, image])
    i2t, t2i = ranks_from_embeddings(image, image, np.arange(400)).ranks
    assert set(i2t.tolist()) == set(t2i.tolist()) == {2}


def test_other_captions_of_the_same_image_never_count_against_its_hit():
    image = np.eye(2)
    text = np.array([[0.9, 0.0], [1.0, 0.0], [0.95, 0.0], [0.0, 1.0]])
    i2t, _ = ranks_from_embeddings(image, text, np.array([0, 0, 0, 1]))
    assert i2t.rank.tolist() == [1, 1]


def test_each_right_item_has_a_position_of_its_own():
    """The image's captions score 3, 2 and 1; another's 2.5: the first and the third of three are relevant."""
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


def test_nan_is_refused_with_the_row_that_holds_it():
    image = np.eye(3)
    image[1, 2] = np.nan
    with pytest.raises(DiptychError, match="image embedding 1 holds NaN or infinity"):
        ranks_from_embeddings(image, np.eye(3), np.arange(3))


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
        ranks_from_embeddings(image, text, np.array(image_of_caption))
