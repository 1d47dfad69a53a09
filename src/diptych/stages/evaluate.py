"""The evaluate stage: from the model and the test split to reports/metrics.json, plots and report.html."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import diptych
from diptych.config import Params
from diptych.data.prepared import Prepared
from diptych.files import atomic_path, file_sha256, sources_sha256, write_json
from diptych.model.device import choose_device, keep_freed_memory, set_threads
from diptych.model.package import load_model, weights_sha256
from diptych.project.workspace import Workspace
from diptych.report.highlights import highlighter
from diptych.report.html import Findings, Setting, read_history, write_report
from diptych.report.table import table
from diptych.retrieval.attributes import attributes
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.evaluation import Evaluation, evaluate_gallery, recall_curves
from diptych.retrieval.failures import find_failures
from diptych.retrieval.judgements import add_extended
from diptych.retrieval.ladder import in_words, is_better_than_chance, rungs, to_json, verdicts
from diptych.retrieval.metrics import chance_metrics, metrics_from_ranks
from diptych.retrieval.reranking import Weights
from diptych.retrieval.similarities import Similarities
from diptych.retrieval.stored_ranks import load_ranks
from diptych.retrieval.uncertainty import judge

log = logging.getLogger(__name__)


def run(workspace: Workspace, params: Params) -> None:
    """Measures retrieval on the test split: by the towers, normalized, and with the top k re-ranked by the fusion.

    Raises:
        DiptychError: the model, the prepared data or the device is not there.
    """
    keep_freed_memory()
    set_threads(params.threads)
    device = choose_device(params.device)
    loaded = load_model(workspace.model, str(device))
    model = loaded.model
    split = Prepared(workspace.prepared, params.data.splits).split("test")
    embedded = embed_split(model, split, batch_size=params.evaluate.batch_size, device=device, description="embed test")
    top_k = params.evaluate.top_k
    weights = Weights(loaded.reranking.match_weight, loaded.reranking.alignment_weight)
    evaluation = evaluate_gallery(model, embedded, loaded.querybank, top_k=top_k, weights=weights, device=device)
    add_extended(evaluation, split.image_ids, split.caption_ids)
    setting = Setting(
        split=params.data.splits.test,
        made_of=_made_of(workspace),
        top_k=top_k,
        weights=weights,
    )
    history = read_history(workspace.reports / "training.csv")
    sizes = len(split), len(split.captions)
    compared = {**load_ranks(workspace.baselines, *sizes), **load_ranks(workspace.controls, *sizes)}
    uncertainty = judge({**compared, **evaluation.ranks}, split.image_of_caption)
    baselines = {name: metrics_from_ranks(*ranks) for name, ranks in compared.items()}
    write_json(workspace.reports / "metrics.json", evaluation.metrics)
    write_json(workspace.reports / "baselines.json", baselines)
    write_json(workspace.reports / "uncertainty.json", uncertainty.to_json())
    chance = chance_metrics(split.image_of_caption, len(split))
    every = {**baselines, **evaluation.metrics}
    ladder, judged = (rungs(every, uncertainty, chance), verdicts(every, uncertainty)) if baselines else ([], [])
    write_json(workspace.reports / "ladder.json", to_json(ladder, judged))
    _write_curves(workspace.reports / "plots" / "recall_at_k.csv", evaluation)
    _write_similarities(workspace.reports / "plots" / "similarities.csv", evaluation.similarities)
    queries = params.evaluate.report_queries
    looks = attributes(workspace.manifest, split)
    failures = find_failures(evaluation, split.image_of_caption, split.captions, *looks)
    write_json(workspace.reports / "failures.json", failures.to_json())
    read_by = loaded.tokenizer, loaded.preprocessing
    highlight = highlighter(model, embedded, weights, split.captions, *read_by, device)
    findings = Findings(evaluation, uncertainty, failures, ladder, judged, highlight)
    write_report(workspace.reports / "report.html", split, findings, setting, history, queries)
    log.info("%s", table(evaluation, uncertainty, chance, setting.split))
    gain = uncertainty.gains["reranked"]["qb_norm"].rsum
    cost = 1000 * evaluation.reranking_seconds / (len(split) + len(split.captions))
    log.info("Re-ranking: %.1f ms a query for %+.1f RSUM", cost, gain)
    if not is_better_than_chance(evaluation.metrics, uncertainty, chance):
        log.warning("The model may be no better than chance: train it longer, or on more images.")
    for line in in_words(judged):
        log.info("%s", line)


def _made_of(workspace: Workspace) -> dict[str, str]:
    """SHA-256 of what the figures depend on, by name."""
    return {
        "Weights": weights_sha256(workspace.model),
        **{name: file_sha256(workspace.prepared / f"{name}.parquet") for name in ("images", "captions")},
        "code": sources_sha256(Path(diptych.__file__).parent, ("data", "model", "retrieval")),
    }


def _write_curves(path: Path, evaluation: Evaluation) -> None:
    _write_table(
        path,
        ["direction", "stage", "k", "recall"],
        ((way, stage, k, f"{recall:.4f}") for way, stage, k, recall in recall_curves(evaluation)),
    )


def _write_similarities(path: Path, found: Similarities) -> None:
    middles = (found.edges()[:-1] + found.edges()[1:]) / 2
    _write_table(
        path,
        ["cosine", "pairs", "percent"],
        (
            (f"{middle:.2f}", name, f"{share:.4f}")
            for name, shares in zip(("matching", "other"), found.shares(), strict=True)
            for middle, share in zip(middles, shares, strict=True)
        ),
    )


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """For `dvc plots`."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
