"""The evaluate stage: from the model and the test split to reports/metrics.json, plots and report.html."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from diptych.config import Params
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.files import file_sha256, write_csv, write_json
from diptych.model.device import prepare
from diptych.model.package import weights_sha256
from diptych.project.workspace import Workspace
from diptych.report.highlights import highlighter
from diptych.report.html import Findings, Setting, read_history, write_report
from diptych.report.table import table
from diptych.retrieval.attributes import attributes
from diptych.retrieval.evaluation import Evaluation, evaluator_sha256, recall_curves
from diptych.retrieval.failures import Failures, find_failures
from diptych.retrieval.judgements import add_extended
from diptych.retrieval.ladder import Rung, Verdict, in_words, is_better_than_chance, rungs, to_json, verdicts
from diptych.retrieval.metrics import Metrics, chance_metrics, metrics_from_ranks
from diptych.retrieval.similarities import Similarities
from diptych.retrieval.stages import shown
from diptych.retrieval.stored_ranks import load_ranks
from diptych.retrieval.trust import Trust, examine
from diptych.retrieval.uncertainty import Uncertainty, judge
from diptych.retriever import Retriever

log = logging.getLogger(__name__)


def run(workspace: Workspace, params: Params) -> None:
    """Measure retrieval on the test split, compare it with the baselines and controls, and write the report.

    The test split is ranked by the towers, with query-bank normalization, and with the top k re-ranked by the fusion.

    Raises:
        DiptychError: the model, the prepared data or the device is missing.
    """
    retriever = Retriever.load(workspace.model, str(prepare(params.device, params.threads)), params.evaluate.batch_size)
    split = Prepared(workspace.prepared, params.data.splits).split("test")
    embedded = retriever.embed(split, "embed test")
    evaluation = retriever.evaluate(embedded, params.evaluate.top_k)
    add_extended(evaluation, split.image_ids, split.caption_ids)
    chance = chance_metrics(split.image_of_caption, len(split))
    comparison = _compare(workspace, evaluation, split, chance, params)
    trust = _trust(retriever, evaluation, split)
    failures = find_failures(evaluation, split.image_of_caption, split.captions, *attributes(workspace.manifest, split))
    _write_files(workspace.reports, evaluation, comparison, failures)
    write_json(workspace.reports / "calibration.json", trust.to_json() if trust else {})
    highlight = highlighter(retriever, embedded, split.captions)
    evaluation, uncertainty = _shown(evaluation, comparison.uncertainty, params)
    findings = Findings(evaluation, uncertainty, failures, comparison.rungs, comparison.verdicts, highlight, trust)
    setting = Setting(params.data.splits.test, _made_of(workspace), params.evaluate.top_k, retriever.weights)
    history = read_history(workspace.reports / "training.csv")
    write_report(workspace.reports / "report.html", split, findings, setting, history, params.evaluate.report_queries)
    _log_summary(findings, chance, setting, queries=len(split) + len(split.captions))


class _Comparison(NamedTuple):
    """The model next to its baselines and controls."""

    baselines: dict[str, Metrics]
    uncertainty: Uncertainty
    rungs: list[Rung]
    verdicts: list[Verdict]


def _compare(
    workspace: Workspace, evaluation: Evaluation, split: PreparedSplit, chance: Metrics, params: Params
) -> _Comparison:
    sizes = len(split), len(split.captions)
    compared = {**load_ranks(workspace.baselines, *sizes), **load_ranks(workspace.controls, *sizes)}
    uncertainty = judge({**compared, **evaluation.ranks}, split.image_of_caption)
    baselines = {name: metrics_from_ranks(*ranks) for name, ranks in compared.items()}
    if not baselines:
        return _Comparison(baselines, uncertainty, [], [])
    model, compared_with = _shown(evaluation, uncertainty, params)
    every = {**baselines, **model.metrics}
    ladder, claims = rungs(every, compared_with, chance), verdicts(every, compared_with)
    return _Comparison(baselines, uncertainty, ladder, claims)


def _shown(evaluation: Evaluation, uncertainty: Uncertainty, params: Params) -> tuple[Evaluation, Uncertainty]:
    """Return both with the stages that people are shown."""
    ranks, metrics = shown(evaluation.ranks, params), shown(evaluation.metrics, params)
    intervals, gains = shown(uncertainty.intervals, params), shown(uncertainty.gains, params)
    return evaluation._replace(ranks=ranks, metrics=metrics), Uncertainty(intervals, gains)


def _write_files(reports: Path, evaluation: Evaluation, comparison: _Comparison, failures: Failures) -> None:
    """Write the figures that DVC, MLflow and programs read."""
    write_json(reports / "metrics.json", evaluation.metrics)
    write_json(reports / "baselines.json", comparison.baselines)
    write_json(reports / "uncertainty.json", comparison.uncertainty.to_json())
    write_json(reports / "ladder.json", to_json(comparison.rungs, comparison.verdicts))
    write_json(reports / "failures.json", failures.to_json())
    _write_curves(reports / "plots" / "recall_at_k.csv", evaluation)
    _write_similarities(reports / "plots" / "similarities.csv", evaluation.similarities)


def _log_summary(findings: Findings, chance: Metrics, setting: Setting, *, queries: int) -> None:
    evaluation, uncertainty = findings.evaluation, findings.uncertainty
    log.info("%s", table(evaluation, uncertainty, chance, setting.split))
    if "reranked" not in evaluation.metrics:
        log.info("No fusion was trained (train.objectives.itm is 0), so nothing is re-ranked.")
    else:
        gain = uncertainty.gains["reranked"]["qb_norm"].rsum
        log.info("Re-ranking: %.1f ms a query for %+.1f RSUM", 1000 * evaluation.reranking_seconds / queries, gain)
    if not is_better_than_chance(evaluation.metrics, uncertainty, chance):
        log.warning("The model may be no better than chance: train it longer, or on more images.")
    for line in in_words(findings.verdicts):
        log.info("%s", line)


def _trust(retriever: Retriever, evaluation: Evaluation, split: PreparedSplit) -> Trust | None:
    """Return how far the model's calibration holds on test; None where it has none."""
    if retriever.calibration is None or evaluation.best is None:
        return None
    return examine(retriever.calibration, evaluation.best, split.image_of_caption)


def _made_of(workspace: Workspace) -> dict[str, str]:
    """Return the SHA-256 of everything that the figures depend on, by name."""
    return {
        "Weights": weights_sha256(workspace.model),
        **{name: file_sha256(workspace.prepared / f"{name}.parquet") for name in ("images", "captions")},
        "code": evaluator_sha256(),
    }


def _write_curves(path: Path, evaluation: Evaluation) -> None:
    write_csv(
        path,
        ["direction", "stage", "k", "recall"],
        ((direction, stage, k, f"{recall:.4f}") for direction, stage, k, recall in recall_curves(evaluation)),
    )


def _write_similarities(path: Path, counts: Similarities) -> None:
    middles = (counts.edges()[:-1] + counts.edges()[1:]) / 2
    write_csv(
        path,
        ["cosine", "pairs", "percent"],
        (
            (f"{middle:.2f}", name, f"{share:.4f}")
            for name, shares in zip(("matching", "other"), counts.shares(), strict=True)
            for middle, share in zip(middles, shares, strict=True)
        ),
    )
