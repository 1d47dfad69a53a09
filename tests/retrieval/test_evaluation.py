"""Both stages of a gallery together."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.retrieval import evaluation, metrics
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.evaluation import evaluate_gallery, evaluator_sha256, recall_curves
from diptych.retrieval.metrics import average_metrics, retrieval_metrics
from diptych.retrieval.reranking import Directed, Weights

CPU = torch.device("cpu")
BOTH = Directed(Weights(itm=1.0, alignment=0.5), Weights(itm=0.5, alignment=1.0))
STAGES = ("towers", "qb_norm", "reranked")


@pytest.fixture
def embedded(model, make_split):
    return embed_split(model, make_split(images=10), batch_size=8, device=CPU)


@pytest.fixture
def evaluate(model, querybank):
    def evaluate(embedded, top_k=4, weights=BOTH):
        return evaluate_gallery(
            model, embedded.biased(querybank, model.logit_scale.item()), top_k=top_k, weights=weights, device=CPU
        )

    return evaluate


@pytest.mark.parametrize("name", ["retriever.py", "config.py", "retrieval/metrics.py"])
def test_the_evaluator_is_another_one_after_any_change_of_its_code(monkeypatch, tmp_path, name):
    before = evaluator_sha256()
    package = shutil.copytree(Path(evaluation.__file__).parents[1], tmp_path / "diptych")
    monkeypatch.setattr(evaluation, "__file__", str(package / "retrieval" / "evaluation.py"))
    assert evaluator_sha256() == before

    with (package / name).open("a") as file:
        file.write("\n")

    assert evaluator_sha256() != before


def test_the_towers_figures_are_those_of_the_embeddings(evaluate, embedded):
    expected = retrieval_metrics(embedded.image, embedded.text, embedded.image_of_caption)
    assert evaluate(embedded).metrics["towers"] == expected


def test_weight_zero_changes_no_figure(evaluate, embedded):
    figures = evaluate(embedded, weights=Directed()).metrics
    assert figures["qb_norm"] == figures["reranked"]


def test_normalized_items_rank_by_the_cosine_less_their_own_bias(evaluate, embedded, model, querybank):
    scale = model.logit_scale.item()
    cosine = (embedded.image @ embedded.text.T).double()
    captions = (cosine - querybank.text_bias(embedded.text, scale)).tolist()
    images = (cosine.T - querybank.image_bias(embedded.image, scale)).tolist()
    own = embedded.image_of_caption
    i2t = [
        1 + sum(row[j] >= max(row[o] for o in np.flatnonzero(own == i)) for j in np.flatnonzero(own != i))
        for i, row in enumerate(captions)
    ]
    t2i = [sum(score >= row[own[j]] for score in row) for j, row in enumerate(images)]
    ranks = evaluate(embedded).ranks
    assert [direction.tolist() for direction in ranks["qb_norm"].ranks] == [i2t, t2i]
    assert [direction.tolist() for direction in ranks["towers"].ranks] != [i2t, t2i]


def test_other_galleries_than_coco_5k_have_no_folds(evaluate, embedded):
    assert list(evaluate(embedded).metrics["reranked"]) == ["i2t", "t2i", "rsum"]


def test_coco_5k_is_also_averaged_over_five_galleries_at_every_stage(evaluate, embedded, monkeypatch):
    monkeypatch.setattr(metrics, "FOLDED_IMAGES", 10)
    figures = evaluate(embedded).metrics
    own = embedded.image_of_caption
    parts = []
    for start in range(0, 10, 2):
        captions = ((own >= start) & (own < start + 2)).nonzero()[0]
        part = embedded.part(slice(start, start + 2), captions, own[captions] - start)
        parts.append(evaluate(part).metrics)
    for stage in STAGES:
        assert figures[stage]["folds_1k"] == average_metrics([part[stage] for part in parts])


def test_recall_curves_pass_through_the_metrics_and_never_fall(evaluate, embedded):
    evaluation = evaluate(embedded)
    curves = recall_curves(evaluation)
    assert len(curves) == 2 * 3 * 50
    recalls = {(direction, stage, k): recall for direction, stage, k, recall in curves}
    for stage in STAGES:
        for direction in ("i2t", "t2i"):
            assert recalls[direction, stage, 5] == evaluation.metrics[stage][direction]["recall@5"]
            line = [recalls[direction, stage, k] for k in range(1, 51)]
            assert line == sorted(line)
