"""reports/report.html: one self-contained page without scripts, the same bytes for the same evaluation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.retrieval.evaluation import Evaluation, recall_curves
from diptych.retrieval.figures import DIRECTIONS, STAGES, Picture, loss_figure, recall_figure, validation_figure
from diptych.retrieval.gallery import caption_gallery, image_gallery
from diptych.retrieval.metrics import KS, Metrics, average_metrics, chance_metrics, folds
from diptych.retrieval.reranking import Weights
from diptych.retrieval.uncertainty import RESAMPLES, Uncertainty

FIGURES = {f"recall@{k}": f"Recall@{k}" for k in KS} | {
    "r_precision": "R-precision",
    "map@r": "mAP@R",
    "median_rank": "Median rank",
    "mean_rank": "Mean rank",
    "tied": "Tied",
}


class Figure(NamedTuple):
    """A number, and where 95 % of the resamples lie, if they were drawn."""

    value: float
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """A line of the metrics table."""

    name: str
    towers: Figure
    normalized: Figure
    reranked: Figure
    chance: Figure


class Setting(NamedTuple):
    """What the evaluation was done with."""

    split: str
    top_k: int
    weights: Weights
    logit_scale: float
    weights_sha256: str


def write_report(
    path: Path,
    split: PreparedSplit,
    evaluation: Evaluation,
    uncertainty: Uncertainty,
    setting: Setting,
    history: Sequence[dict[str, float]],
    queries: int,
) -> None:
    """Renders the report.

    Args:
        path: the page.
        split: what was evaluated.
        evaluation: of that split.
        uncertainty: of that evaluation.
        setting: what it was done with.
        history: rows of reports/training.csv; may be empty.
        queries: how many queries to show of each direction.
    """
    curves = recall_curves(evaluation)
    figures = [recall_figure(curves, direction) for direction in DIRECTIONS] + _training_figures(history)
    orders = [shortlist.order(setting.logit_scale, setting.weights) for shortlist in evaluation.candidates]
    ranks = evaluation.ranks["reranked"].ranks
    chance = chance_metrics(split.image_of_caption, len(split))
    tables = {"": _rows(evaluation.metrics, chance, uncertainty)}
    if "folds_1k" in evaluation.metrics["towers"]:
        folded = {stage: metrics["folds_1k"] for stage, metrics in evaluation.metrics.items()}
        tables["Mean of five folds of 1,000 images"] = _rows(folded, _chance_of_folds(split))
    content = (
        _environment()
        .get_template("report.html.j2")
        .render(
            setting=setting,
            images=len(split),
            captions=len(split.captions),
            rsum={
                stage: _figure(metrics, uncertainty.intervals[stage]) for stage, metrics in evaluation.metrics.items()
            },
            gains=uncertainty.gains,
            resamples=RESAMPLES,
            chance=chance["rsum"],
            tables=tables,
            figures=figures,
            image_gallery=image_gallery(split, orders[0], ranks[0], queries),
            caption_gallery=caption_gallery(split, orders[1], ranks[1], queries),
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def read_history(path: Path) -> list[dict[str, float]]:
    """One row an epoch, as train wrote them; none if there is no such file.

    Raises:
        DiptychError: the file is not a table of numbers.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError, AttributeError) as error:
        raise DiptychError(f"{path} is not a table of numbers ({error}); run `dvc repro train`.") from None


def _training_figures(history: Sequence[dict[str, float]]) -> list[Picture]:
    return [loss_figure(history), validation_figure(history)] if history else []


def _chance_of_folds(split: PreparedSplit) -> Metrics:
    return average_metrics(
        [
            chance_metrics(own, images.stop - images.start)
            for images, _, own in folds(split.image_of_caption, len(split))
        ]
    )


def _rows(metrics: dict[str, Metrics], chance: Metrics, uncertainty: Uncertainty | None = None) -> dict[str, list[Row]]:
    """Rows of each direction, and RSUM, which belongs to none."""

    def row(label: str, *path: str) -> Row:
        figures = [_figure(metrics[stage], uncertainty and uncertainty.intervals[stage], *path) for stage in STAGES]
        return Row._make([label, *figures, _figure(chance, None, *path)])

    ways = {name: [row(label, way, figure) for figure, label in FIGURES.items()] for way, name in DIRECTIONS.items()}
    return {**ways, "": [row("RSUM")]}


def _figure(metrics: Metrics, ends: dict[str, Metrics] | None, *path: str) -> Figure:
    """What stands at `path` of the metrics and of the `ends` of their intervals, by default RSUM."""

    def found(where: Metrics) -> float:
        for name in path or ("rsum",):
            where = where[name]
        return float(where)  # type: ignore[arg-type]

    return Figure(found(metrics), *(found(ends[side]) for side in ("low", "high")) if ends else ())


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
