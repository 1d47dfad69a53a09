"""What a training and an evaluation leave behind, without either."""

import json
from pathlib import Path

from tiny import PREPROCESSING, RERANKING, make_model, make_querybank, model_settings

from diptych.data.tokenization import learn_tokenizer, save_tokenizer, vocabulary_facts
from diptych.model.package import save_model

CAPTIONS = ["a red square left of a blue circle", "a small green triangle", "two yellow stars above a grey square"]


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """A model folder as training writes it; another seed, other weights."""
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    save_tokenizer(learn_tokenizer(CAPTIONS * 5, 200), tokenizer, 16)
    model = make_model(vocabulary_facts(tokenizer)[0], seed)
    save_model(
        folder,
        model,
        model_settings(),
        tokenizer,
        PREPROCESSING,
        RERANKING,
        make_querybank(),
    )
    return folder


def write_reports(folder: Path) -> None:
    """Metrics, what they are compared with, the history of the training, the report."""
    figures = {"recall@1": 10.0, "recall@5": 20.0, "recall@10": 30.0, "median_rank": 4.0}
    towers = {"i2t": figures, "t2i": figures, "rsum": 120.0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps({"towers": towers, "qb_norm": {**towers, "rsum": 125.0}, "reranked": {**towers, "rsum": 130.0}})
    )
    (folder / "baselines.json").write_text(json.dumps({"prior": {**towers, "rsum": 12.0}}))
    rungs = [{"name": "chance", "rsum": 10.0, "low": None, "high": None, "is_model": False}]
    gain = {"rsum": 118.0, "low": 110.0, "high": 126.0, "p_value": 0.001}
    verdict = {"claim": "It is better", "answer": "yes", "over": "prior", "gain": gain}
    (folder / "ladder.json").write_text(json.dumps({"rungs": rungs, "verdicts": [verdict]}))
    (folder / "training.csv").write_text("epoch,loss,val_rsum\n1,2.0,100.0\n2,1.0,120.0\n")
    (folder / "report.html").write_text("<p>report</p>")
