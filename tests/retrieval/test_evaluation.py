"""Both stages of a gallery together."""

import pytest
import torch

from diptych.retrieval import metrics
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.evaluation import evaluate_gallery, recall_curves
from diptych.retrieval.metrics import average_metrics, retrieval_metrics

CPU = torch.device("cpu")


@pytest.fixture
def embedded(model, make_split):
    return embed_split(model, make_split(images=10), batch_size=8, device=CPU)


def evaluate(model, embedded, top_k=4, weight=1.0):
    return evaluate_gallery(model, embedded, top_k=top_k, weight=weight, device=CPU)


def test_the_towers_figures_are_those_of_the_embeddings(model, embedded):
    expected = retrieval_metrics(embedded.image, embedded.text, embedded.image_of_caption)
    assert evaluate(model, embedded).metrics["towers"] == expected


def test_weight_zero_changes_no_figure(model, embedded):
    figures = evaluate(model, embedded, weight=0.0).metrics
    assert figures["towers"] == figures["reranked"]


def test_other_galleries_than_coco_5k_have_no_folds(model, embedded):
    assert list(evaluate(model, embedded).metrics["reranked"]) == ["i2t", "t2i", "rsum"]


def test_coco_5k_is_also_averaged_over_five_galleries_both_before_and_after_reranking(model, embedded, monkeypatch):
    monkeypatch.setattr(metrics, "FOLDED_IMAGES", 10)
    figures = evaluate(model, embedded).metrics
    own = embedded.image_of_caption
    parts = []
    for start in range(0, 10, 2):
        captions = ((own >= start) & (own < start + 2)).nonzero()[0]
        part = embedded.part(slice(start, start + 2), captions, own[captions] - start)
        parts.append(evaluate(model, part).metrics)
    for stage in ("towers", "reranked"):
        assert figures[stage]["folds_1k"] == average_metrics([part[stage] for part in parts])


def test_recall_curves_pass_through_the_metrics_and_never_fall(model, embedded):
    evaluation = evaluate(model, embedded)
    curves = recall_curves(evaluation)
    assert len(curves) == 2 * 2 * 50
    recalls = {(direction, stage, k): recall for direction, stage, k, recall in curves}
    for stage in ("towers", "reranked"):
        for direction in ("i2t", "t2i"):
            assert recalls[direction, stage, 5] == evaluation.metrics[stage][direction]["recall@5"]
            line = [recalls[direction, stage, k] for k in range(1, 51)]
            assert line == sorted(line)
