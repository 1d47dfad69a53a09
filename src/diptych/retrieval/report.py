"""reports/report.html: one self-contained page without scripts, the same bytes for the same evaluation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.retrieval.evaluation import Evaluation, recall_curves
from diptych.retrieval.figures import DIRECTIONS, STAGES, Picture, loss_figure, recall_figure, validation_figure
from diptych.retrieval.gallery import caption_gallery, image_gallery
from diptych.retrieval.metrics import Metrics, chance_rsum
from diptych.retrieval.reranking import Weights

FIGURES = {"recall@1": "Recall@1", "recall@5": "Recall@5", "recall@10": "Recall@10", "median_rank": "Median rank"}


class Row(NamedTuple):
    """A line of the metrics table."""

    name: str
    towers: float
    normalized: float
    reranked: float


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
    setting: Setting,
    history: Sequence[dict[str, float]],
    queries: int,
) -> None:
    """Renders the report.

    Args:
        path: the page.
        split: what was evaluated.
        evaluation: of that split.
        setting: what it was done with.
        history: rows of reports/training.csv; may be empty.
        queries: how many queries to show of each direction.
    """
    curves = recall_curves(evaluation)
    figures = [recall_figure(curves, direction) for direction in DIRECTIONS] + _training_figures(history)
    orders = [shortlist.order(setting.logit_scale, setting.weights) for shortlist in evaluation.candidates]
    ranks = evaluation.ranks["reranked"]
    tables = {"": evaluation.metrics} | _folded(evaluation.metrics)
    content = (
        _environment()
        .get_template("report.html.j2")
        .render(
            setting=setting,
            images=len(split),
            captions=len(split.captions),
            rsum={stage: metrics["rsum"] for stage, metrics in evaluation.metrics.items()},
            chance=chance_rsum(split.image_of_caption, len(split)),
            tables={name: _rows(metrics) for name, metrics in tables.items()},
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


def _folded(metrics: dict[str, Metrics]) -> dict[str, dict[str, Any]]:
    """The second table, of the five-fold 1K protocol, where there is one."""
    if "folds_1k" not in metrics["towers"]:
        return {}
    return {"Mean of five folds of 1,000 images": {stage: values["folds_1k"] for stage, values in metrics.items()}}


def _rows(metrics: dict[str, Metrics]) -> dict[str, list[Row]]:
    """Rows of each direction, and RSUM, which belongs to none."""
    ways = {
        name: [Row(label, *(metrics[stage][way][figure] for stage in STAGES)) for figure, label in FIGURES.items()]
        for way, name in DIRECTIONS.items()
    }
    return {**ways, "": [Row("RSUM", *(metrics[stage]["rsum"] for stage in STAGES))]}


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
