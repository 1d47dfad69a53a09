"""The extended judgements are those of the package that has them, of the right lists."""

from __future__ import annotations

import sys

import eccv_caption
import numpy as np
import pytest
import torch
from tiny import make_model, make_querybank, pixels
from torch.nn.functional import normalize

from diptych.retrieval.embedding import Embedded
from diptych.retrieval.evaluation import Evaluation, evaluate_embeddings, evaluate_gallery
from diptych.retrieval.judgements import LABELS, NAMES, add_extended
from diptych.retrieval.metrics import KS
from diptych.retrieval.reranking import Directed, Weights

IMAGES = 60


class Few(eccv_caption.Metrics):  # type: ignore[misc]
    """Of the first images of COCO's test."""

    def __init__(self) -> None:
        super().__init__()
        judged = sorted(self.eccv_gts["i2t"])[: IMAGES // 2]
        images = {*judged, *[image for image in sorted(self.coco_gts["i2t"]) if image not in judged][: IMAGES // 2]}
        captions = {caption for caption, own in self.coco_gts["t2i"].items() if own[0] in images}
        for gts in (self.coco_gts, self.eccv_gts, self.cxc_gts):
            for direction, queries, items in (("i2t", images, captions), ("t2i", captions, images)):
                kept = {
                    query: [item for item in gts[direction][query] if item in items]
                    for query in queries & set(gts[direction])
                }
                gts[direction] = {query: found for query, found in kept.items() if found}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Few:
    monkeypatch.setattr(eccv_caption, "Metrics", Few)
    return Few()


def gallery(few: Few, unknown: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ids, caption ids and each caption's image, in no order, with captions that the judgements do not know."""
    random = np.random.default_rng(0)
    images = random.permutation(sorted(few.coco_gts["i2t"]))
    captions = random.permutation(sorted(few.coco_gts["t2i"]))
    place = {image: index for index, image in enumerate(images.tolist())}
    own = [place[few.coco_gts["t2i"][caption][0]] for caption in captions.tolist()]
    extra = [10**9 + number for number in range(unknown)]
    order = random.permutation(len(captions) + unknown)
    return images, np.array([*captions, *extra])[order], np.array([*own, *range(unknown)])[order]


def test_figures_are_those_of_the_full_rankings(few: Few) -> None:
    images, captions, own = gallery(few)
    random = torch.Generator().manual_seed(0)
    image = torch.randn(len(images), 12, generator=random)
    text = image[torch.from_numpy(own)] + 1.5 * torch.randn(len(captions), 12, generator=random)
    evaluation = evaluate_embeddings(image, text, own)
    add_extended(evaluation, images, captions)
    found = evaluation.metrics["embeddings"]["extended"]
    assert {tuple(figures) for figures in found.values()} == {tuple(LABELS)}

    scores = (normalize(image, dim=1) @ normalize(text, dim=1).T).numpy()
    known = np.isin(captions, list(few.coco_gts["t2i"]))
    i2t = {
        one: captions[known][np.argsort(-row)].tolist()
        for one, row in zip(images.tolist(), scores[:, known], strict=True)
    }
    t2i = {
        one: images[np.argsort(-row)].tolist()
        for one, row in zip(captions[known].tolist(), scores.T[known], strict=True)
    }
    wanted = ("eccv_r1", "eccv_rprecision", "eccv_map_at_r", "cxc_recalls")
    theirs = few.compute_all_metrics(i2t, t2i, target_metrics=wanted, Ks=KS, verbose=False)
    for direction, figures in found.items():
        assert figures == pytest.approx({ours: 100 * theirs[name][direction] for name, ours in NAMES.items()})
        assert 0 < figures["eccv_map@r"] < 100


def test_other_galleries_are_not_judged(few: Few) -> None:
    images, captions, own = gallery(few)
    for image_ids, caption_ids in ((images + 10**9, captions), (images, captions + 10**10)):
        evaluation = evaluate_embeddings(torch.eye(len(images)), torch.eye(len(images))[own], own)
        add_extended(evaluation, image_ids, caption_ids)
        assert "extended" not in evaluation.metrics["embeddings"]


def test_without_the_package_there_are_none(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    images, captions, own = gallery(few)
    monkeypatch.setitem(sys.modules, "eccv_caption", None)
    evaluation = evaluate_embeddings(torch.eye(len(images)), torch.eye(len(images))[own], own)
    add_extended(evaluation, images, captions)
    assert "extended" not in evaluation.metrics["embeddings"]


def reranked(top_k: int) -> Evaluation:
    model = make_model()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = model.encode_images(pixels(6))
    own = np.repeat(np.arange(6), 2)
    text = normalize(torch.randn(12, 16, generator=random), dim=1)
    tokens, offsets = torch.randn(36, 16, generator=random), torch.arange(0, 37, 3)
    embedded = Embedded(images.grid, tokens, offsets, images.pooled, text, own)
    weights = Directed(Weights(30.0, 10.0), Weights(10.0, 30.0))
    return evaluate_gallery(
        model,
        embedded.biased(make_querybank(), model.logit_scale.item()),
        top_k=top_k,
        weights=weights,
        device=torch.device("cpu"),
    )


def test_deep_lists_go_on_behind_the_candidates_in_the_order_of_before() -> None:
    few, all_candidates, none = reranked(3), reranked(12), reranked(1)
    for k in (1, 2, 3, 5, 99):
        for direction in range(2):
            lists = few.deep(k)[direction]
            before = none.deep(99)[direction][:, :k]
            assert lists.shape == before.shape
            assert [sorted(row) for row in lists[:, :3]] == [sorted(row) for row in before[:, :3]] or k < 3
            assert (lists[:, 3:] == before[:, 3:]).all()
            for query, row in enumerate(lists.tolist()):
                assert row[:3] == few.first[direction](query)[:k][:3]
    assert all((few.deep(3)[direction] != none.deep(3)[direction]).any() for direction in range(2))
    assert [lists.shape for lists in all_candidates.deep(99)] == [(6, 12), (12, 6)]
