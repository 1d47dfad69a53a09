"""Ranks and figures against other packages, where their definitions are ours, and by what must always hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from eccv_caption import Metrics as EccvCaption
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.retrieval import metrics
from diptych.retrieval.metrics import KS, retrieval_metrics
from diptych.retrieval.ranking import Ranks, ranks_from_embeddings

settings.register_profile("the same cases each time", deadline=None, database=None, derandomize=True)
settings.load_profile("the same cases each time")
pytestmark = pytest.mark.filterwarnings("ignore:failed to import `ujson`")

Gallery = tuple[np.ndarray, np.ndarray, np.ndarray]


def gallery(counts: list[int], seed: int, dim: int = 6) -> Gallery:
    """Images with so many captions each, in random order, their embeddings near to each other."""
    random = np.random.default_rng(seed)
    own = random.permutation(np.repeat(np.arange(len(counts)), counts))
    image = random.normal(size=(len(counts), dim)).astype(np.float32)
    return image, (image[own] + random.normal(size=(len(own), dim))).astype(np.float32), own


def both_directions(made: Gallery) -> Iterator[tuple[str, np.ndarray, list[list[int]]]]:
    """Direction, scores (queries, items), and the relevant items of each query."""
    image, text, own = made
    scores = image.astype(float) @ text.astype(float).T
    yield "i2t", scores, [np.flatnonzero(own == one).tolist() for one in range(len(image))]
    yield "t2i", scores.T, [[int(one)] for one in own]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts", [[3] * 20, [1, 2, 5, 4, 1, 7, 3, 2] * 3], ids=["even", "ragged"])
def test_hit_rates_r_precision_and_map_equal_ranx(counts: list[int], seed: int) -> None:
    # It takes two seconds to import, in each process of the tests.
    from ranx import Qrels, Run, evaluate

    made = gallery(counts, seed)
    ours = retrieval_metrics(*made)
    for direction, scores, right in both_directions(made):
        run = {
            str(query): {str(item): float(score) for item, score in enumerate(row)} for query, row in enumerate(scores)
        }
        judged = {str(query): {str(item): 1 for item in items} for query, items in enumerate(right)}
        names = {f"recall@{k}": f"hit_rate@{k}" for k in KS} | {"r_precision": "r-precision"}
        if len(set(map(len, right))) == 1:
            # Of queries with equally many relevant items, theirs up to R is mAP@R.
            names["map@r"] = f"map@{len(right[0])}"
        theirs = evaluate(Qrels(judged), Run(run), list(names.values()))
        for name, their_name in names.items():
            assert ours[direction][name] == pytest.approx(100 * theirs[their_name]), (direction, name)


@pytest.mark.parametrize("seed", range(3))
def test_recalls_and_folds_equal_eccv_caption_with_full_rankings(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first images of COCO's test: five folds of ten."""
    monkeypatch.setattr(metrics, "FOLDED_IMAGES", 50)
    theirs = EccvCaption()
    image_of = {caption: images[0] for caption, images in theirs.coco_gts["t2i"].items()}
    order = [int(caption) for caption in theirs.coco_ids]
    images = list(dict.fromkeys(image_of[caption] for caption in order))[:50]
    captions = [caption for caption in order if image_of[caption] in set(images)]
    own = np.array([images.index(image_of[caption]) for caption in captions])
    if len(captions) % 5:
        pytest.fail("their folds are as many captions each")
    theirs.coco_ids = np.array(captions)
    theirs.coco_gts = {
        direction: {key: theirs.coco_gts[direction][key] for key in kept}
        for direction, kept in (("i2t", images), ("t2i", captions))
    }
    random = np.random.default_rng(seed)
    image = random.normal(size=(50, 6)).astype(np.float32)
    text = (image[own] + random.normal(size=(len(own), 6))).astype(np.float32)
    scores = image.astype(float) @ text.astype(float).T
    i2t = {one: np.array(captions)[np.argsort(-row)].tolist() for one, row in zip(images, scores, strict=True)}
    t2i = {one: np.array(images)[np.argsort(-row)].tolist() for one, row in zip(captions, scores.T, strict=True)}
    found = theirs.compute_all_metrics(i2t, t2i, target_metrics=("coco_1k_recalls", "coco_5k_recalls"), Ks=KS)
    ours = retrieval_metrics(image, text, own)
    for direction in ("i2t", "t2i"):
        for k in KS:
            assert ours[direction][f"recall@{k}"] == pytest.approx(100 * found[f"coco_5k_r{k}"][direction])
            assert ours["folds_1k"][direction][f"recall@{k}"] == pytest.approx(100 * found[f"coco_1k_r{k}"][direction])


GALLERIES = st.builds(gallery, st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(0, 2**32 - 1))


def figures_of(ranks: Ranks) -> list[list[float]]:
    return [values.tolist() for found in ranks for values in found]


@given(GALLERIES, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(made: Gallery, random: object) -> None:
    image, text, own = made
    images, captions = np.arange(len(image)), np.arange(len(text))
    random.shuffle(images)  # type: ignore[attr-defined]
    random.shuffle(captions)  # type: ignore[attr-defined]
    before = ranks_from_embeddings(image, text, own)
    after = ranks_from_embeddings(image[images], text[captions], np.argsort(images)[own[captions]])
    for found, moved, order in zip(before, after, (images, captions), strict=True):
        for values, moved_values in zip(found, moved, strict=True):
            assert values[order].tolist() == pytest.approx(moved_values.tolist())


@given(GALLERIES, st.integers(-8, 8), st.integers(-8, 8))
def test_the_scale_of_either_side_does_not_matter(made: Gallery, image_scale: int, text_scale: int) -> None:
    image, text, own = made
    scaled = image * np.float32(2.0**image_scale), text * np.float32(2.0**text_scale)
    assert figures_of(ranks_from_embeddings(*scaled, own)) == figures_of(ranks_from_embeddings(image, text, own))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_the_ideal_embedding_scores_100_and_the_constant_one_its_floor(counts: list[int]) -> None:
    own = np.repeat(np.arange(len(counts)), counts)
    ideal = retrieval_metrics(np.eye(len(counts)), np.eye(len(counts))[own], own)
    constant = retrieval_metrics(np.ones((len(counts), 3)), np.ones((len(own), 3)), own)
    for direction, others in (("i2t", len(own) - np.array(counts)), ("t2i", np.full(len(own), len(counts) - 1))):
        for name in ("recall@1", "recall@5", "recall@10", "r_precision", "map@r"):
            assert ideal[direction][name] == 100.0
        assert ideal[direction]["tied"] == 0.0
        for k in KS:
            assert constant[direction][f"recall@{k}"] == pytest.approx(100 * np.mean(others < k))
        assert constant[direction]["mean_rank"] == pytest.approx(np.mean(1 + others))
        assert constant[direction]["tied"] == pytest.approx(100 * np.mean(others > 0))


@given(GALLERIES)
def test_figures_lie_where_they_must(made: Gallery) -> None:
    found = retrieval_metrics(*made)
    for direction in ("i2t", "t2i"):
        figures = found[direction]
        assert 0 <= figures["recall@1"] <= figures["recall@5"] <= figures["recall@10"] <= 100
        assert 0 <= figures["map@r"] <= figures["r_precision"] + 1e-9
        assert figures["mean_rank"] >= 1
    assert found["t2i"]["r_precision"] == found["t2i"]["map@r"] == found["t2i"]["recall@1"]
