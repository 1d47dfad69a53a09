"""Re-ranking against a naive twin that scores every candidate alone and sorts lists."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.errors import DiptychError
from diptych.retrieval import reranking
from diptych.retrieval.embedding import Embedded, embed_split
from diptych.retrieval.ranking import Outcomes, ranks_from_embeddings
from diptych.retrieval.reranking import (
    Directed,
    Shortlist,
    Weights,
    candidate_logits,
    reranked_ranks,
    top_candidates,
)

CPU = torch.device("cpu")
ONE = Directed(Weights(1.0, 1.0), Weights(1.0, 1.0))


def naive_order(model, split, embedded, top_k, scale, weights, queries):
    """For each query the whole gallery as a list of (index, score): first the re-ranked top k, then the rest."""
    cosines = (embedded.image @ embedded.text.T).numpy()
    cosines = cosines if queries == "images" else cosines.T
    lists = []
    for query, row in enumerate(cosines):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item))
        scored = []
        for item in order[:top_k]:
            i, j = (query, item) if queries == "images" else (item, query)
            images = model.encode_images(torch.from_numpy(split.pixels([i])))
            texts = model.encode_texts(*map(torch.from_numpy, split.tokens([j])))
            fused = model.fuse(images.grid, texts.tokens, texts.mask)
            looked = weights.itm * float(fused.itm) + weights.alignment * float(fused.alignment)
            scored.append((item, scale * row[item] + looked))
        lists.append(sorted(scored, key=lambda pair: -pair[1]) + [(item, -np.inf) for item in order[top_k:]])
    return lists


def naive_precision(lists, right, among):
    """R-precision and average precision at R of each list, of which only the first `among` can be right."""
    figures = []
    for query, items in enumerate(lists):
        rights = [right(query, item) and place < among for place, (item, _) in enumerate(items)]
        first = rights[: sum(right(query, item) for item, _ in items)]
        precisions = [sum(first[: place + 1]) / (place + 1) for place in range(len(first)) if first[place]]
        figures.append((sum(first) / len(first), sum(precisions) / len(first)))
    return figures


def naive_ranks(lists, right):
    """Position of the first relevant item in each list, not counting other right ones."""
    ranks = []
    for query, items in enumerate(lists):
        wrong_before = 0
        for item, _ in items:
            if right(query, item):
                break
            wrong_before += 1
        ranks.append(1 + wrong_before)
    return ranks


@pytest.mark.parametrize("top_k", [1, 3, 100])
@pytest.mark.parametrize("weights", [Weights(), Weights(4.0, 0.0), Weights(1.0, 4.0)])
@pytest.mark.parametrize("seed", range(4))
def test_reranked_ranks_equal_the_naive_ones(model, make_split, top_k, weights, seed, monkeypatch):
    monkeypatch.setattr(reranking, "PAIRS", 5)
    split = make_split(seed=seed, images=4 + 2 * seed)
    model.eval()
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    candidates = candidate_logits(model, embedded, top_k, device=CPU)
    found = reranked_ranks(candidates, 10.0, Directed(weights, weights))
    i2t, t2i = found.ranks
    own = split.image_of_caption
    with torch.no_grad():
        captions = naive_order(model, split, embedded, top_k, 10.0, weights, "images")
        images = naive_order(model, split, embedded, top_k, 10.0, weights, "captions")
    assert i2t.tolist() == naive_ranks(captions, lambda i, j: own[j] == i)
    assert t2i.tolist() == naive_ranks(images, lambda j, i: own[j] == i)
    for direction, lists, right in (
        (found.i2t, captions, lambda i, j: own[j] == i),
        (found.t2i, images, lambda j, i: own[j] == i),
    ):
        precision, average = zip(*naive_precision(lists, right, top_k), strict=True)
        assert direction.r_precision.tolist() == pytest.approx(precision)
        assert direction.average_precision.tolist() == pytest.approx(average)
        assert not direction.tied.any()
    best = [[item for item, score in items if score > -np.inf] for items in captions]
    assert candidates.i2t.order(10.0, weights).tolist() == best


def test_weight_zero_leaves_the_towers_ranks(model, make_split):
    embedded = embed_split(model, make_split(images=30), batch_size=16, device=CPU)
    candidates = candidate_logits(model, embedded, 8, device=CPU)
    towers = ranks_from_embeddings(embedded.image, embedded.text, embedded.image_of_caption)
    for found, expected in zip(reranked_ranks(candidates, 10.0, Directed()), towers, strict=True):
        for values, of_towers in zip(found, expected, strict=True):
            assert values.tolist() == of_towers.tolist()


def test_a_pair_that_is_a_candidate_both_directions_is_fused_once(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    candidate_logits(model, embedded, 100, device=CPU)
    assert model.fused_pairs == len(split) * len(split.captions)


@pytest.mark.parametrize(
    "weights",
    [
        Directed(),
        Directed(Weights(1.0, 0.0), Weights(1.0, 0.0)),
        Directed(Weights(0.0, 2.0), Weights()),
        Directed(Weights(), Weights(0.5, 0.5)),
        Directed(Weights(2.0, 0.0), Weights(0.0, 0.5)),
    ],
)
def test_what_has_no_weight_is_not_computed_and_changes_nothing(model, split, weights):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    whole = candidate_logits(model, embedded, 5, device=CPU)
    model.fused_pairs = model.aligned_pairs = 0
    needed = candidate_logits(model, embedded, 5, device=CPU, weights=weights)
    assert bool(model.fused_pairs) is bool(weights.largest.itm)
    assert bool(model.aligned_pairs) is bool(weights.largest.alignment)
    for found, expected in zip(
        reranked_ranks(needed, 10.0, weights), reranked_ranks(whole, 10.0, weights), strict=True
    ):
        assert all(np.array_equal(*values) for values in zip(found, expected, strict=True))
    assert torch.equal(needed.t2i.order(10.0, weights.t2i), whole.t2i.order(10.0, weights.t2i))


def test_a_direction_without_weight_is_not_scored(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    found = candidate_logits(model, embedded, 2, device=CPU, weights=Directed(Weights(1.0, 1.0), Weights()))
    assert model.fused_pairs == 2 * len(split)
    assert found.i2t.itm.all()
    assert not found.t2i.itm.any()


def test_logits_of_both_directions_agree(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    i2t, t2i = candidate_logits(model, embedded, 100, device=CPU)
    for seen, read in ((i2t.itm, t2i.itm), (i2t.alignment, t2i.alignment)):
        by_caption = torch.empty(len(split), len(split.captions)).scatter_(1, i2t.index, seen)
        by_image = torch.empty(len(split.captions), len(split)).scatter_(1, t2i.index, read)
        assert torch.equal(by_caption, by_image.T)


def test_a_top_k_larger_than_the_gallery_takes_all_of_it(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    candidates = candidate_logits(model, embedded, 1_000, device=CPU)
    assert candidates.i2t.index.shape == (len(split), len(split.captions))
    assert candidates.t2i.index.shape == (len(split.captions), len(split))


def test_the_model_comes_back_in_its_own_mode(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    candidate_logits(model, embedded, 3, device=CPU)
    assert model.training


def test_a_collapsed_model_stays_at_the_pessimistic_floor(model):
    images, captions = 20, 40
    embedded = Embedded(
        image=torch.full((images, 4), 0.5),
        text=torch.full((captions, 4), 0.5),
        grid=torch.ones(images, 2, 6),
        tokens=torch.ones(captions, 6),
        offsets=torch.arange(captions + 1),
        image_of_caption=np.repeat(np.arange(images), 2),
    )
    i2t, t2i = reranked_ranks(candidate_logits(model, embedded, 4, device=CPU), 10.0, ONE).ranks
    assert set(i2t.tolist()) == {captions - 1}
    assert set(t2i.tolist()) == {images}


def shortlist(cosine, logit, right, tower_ranks):
    index = torch.arange(len(cosine[0])).repeat(len(cosine), 1)
    cosine, match, right = (torch.tensor(values) for values in (cosine, logit, right))
    found = Outcomes.one_relevant(np.array(tower_ranks), np.zeros(len(right), bool))
    rights = right.sum(dim=1).clamp(min=1).numpy()
    return Shortlist(index, cosine, match, torch.zeros_like(match), right, rights, np.arange(len(right)), found)


def test_a_candidate_that_scores_as_high_as_the_right_one_ranks_before_it():
    candidates = shortlist([[0.5, 0.5, 0.1]], [[1.0, 1.0, 0.0]], [[False, True, False]], [2])
    assert candidates.ranks(10.0, Weights(1.0, 1.0)).tolist() == [2]


def test_a_tie_that_re_ranking_makes_or_breaks_is_told():
    apart = shortlist([[0.5, 0.5, 0.1]], [[1.0, 0.0, 0.0]], [[False, True, False]], [2])
    assert apart.reranked(10.0, Weights(1.0, 0.0)).tied.tolist() == [False]
    assert apart.reranked(10.0, Weights(0.0, 0.0)).tied.tolist() == [True]
    beyond = shortlist([[0.9, 0.8]], [[0.0, 9.0]], [[False, False]], [17])
    for tied in (True, False):
        towers = beyond.before._replace(tied=np.array([tied]))
        assert replace(beyond, before=towers).reranked(10.0, Weights()).tied.tolist() == [tied]


def test_the_best_right_candidate_counts_and_the_others_stand_in_nobodys_way():
    candidates = shortlist([[0.9, 0.8, 0.7]], [[0.0, 0.0, 0.0]], [[True, False, True]], [1])
    assert candidates.ranks(10.0, Weights(1.0, 1.0)).tolist() == [1]


def test_beyond_the_candidates_the_towers_rank_remains():
    candidates = shortlist([[0.9, 0.8]], [[0.0, 9.0]], [[False, False]], [17])
    assert candidates.ranks(10.0, Weights(1.0, 1.0)).tolist() == [17]


@pytest.mark.parametrize("block_scores", [1, 4_000_000])
def test_candidates_come_in_stable_order_with_ties_by_index(block_scores, monkeypatch):
    monkeypatch.setattr(reranking, "BLOCK_SCORES", block_scores)
    random = np.random.default_rng(0)
    queries = torch.from_numpy(random.integers(-1, 2, (30, 3)).astype(np.float32))
    gallery = torch.from_numpy(random.integers(-1, 2, (40, 3)).astype(np.float32))
    index, product = top_candidates(queries, gallery, 9)
    scores = queries @ gallery.T
    expected = scores.argsort(dim=1, descending=True, stable=True)[:, :9]
    assert torch.equal(index, expected)
    assert torch.equal(product, scores.gather(1, expected))


def test_scores_do_not_change_with_the_other_candidates(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    few, many = (candidate_logits(model, embedded, k, device=CPU).t2i for k in (2, 5))
    torch.testing.assert_close(few.itm, many.itm[:, :2])
    assert torch.equal(few.index, many.index[:, :2])


def test_precision_reaches_the_fusion(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    exact = candidate_logits(model, embedded, 3, device=CPU).t2i.itm
    rough = candidate_logits(model, embedded, 3, device=CPU, precision="bf16").t2i.itm
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_match_logit_that_is_no_number_is_an_error_and_not_a_hit(model, split, value):
    model.match.bias.data.fill_(value)
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    with pytest.raises(DiptychError, match="logit is NaN or infinite for"):
        candidate_logits(model, embedded, 3, device=CPU)
