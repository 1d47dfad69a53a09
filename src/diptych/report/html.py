"""Report of an evaluation: a self-contained page without scripts, the same bytes for the same evaluation."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.report.figures import (
    DIRECTION_LABELS,
    Picture,
    ladder_figure,
    loss_figure,
    recall_figure,
    similarity_figure,
    validation_figure,
)
from diptych.report.gallery import CaptionedImages, make_gallery, picture
from diptych.report.highlights import Highlight
from diptych.report.table import FIGURE_LABELS
from diptych.retrieval.evaluation import Evaluation, recall_curves
from diptych.retrieval.failures import SHOWN, Failures
from diptych.retrieval.judgements import LABELS as EXTENDED
from diptych.retrieval.ladder import Rung, Verdict, is_better_than_chance
from diptych.retrieval.metrics import Metrics, average_metrics, chance_metrics, folds
from diptych.retrieval.ranking import DIRECTIONS
from diptych.retrieval.reranking import Directed
from diptych.retrieval.slices import FEWEST, Slice
from diptych.retrieval.stages import STAGE_LABELS
from diptych.retrieval.trust import Trust
from diptych.retrieval.uncertainty import RESAMPLES, Uncertainty


class Figure(NamedTuple):
    """A number, with its 95 % confidence interval if resamples were drawn."""

    value: float
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """A line of the metrics table."""

    name: str
    figures: list[Figure]
    """Figures of each stage, and of chance."""


class Findings(NamedTuple):
    """Evaluation of a split with the stages that are shown, and everything that was derived from it."""

    evaluation: Evaluation
    uncertainty: Uncertainty
    """Uncertainty of the evaluation, and of the rankings that it is compared with."""
    failures: Failures
    ladder: Sequence[Rung] = ()
    verdicts: Sequence[Verdict] = ()
    highlight: Highlight | None = None
    """Contributions to the fusion's score of a pair; None without a fusion."""
    trust: Trust | None = None
    """Comparison of the model's calibration with test; None without a calibration."""


class Setting(NamedTuple):
    """Inputs and settings of an evaluation."""

    split: str
    made_of: dict[str, str]
    """SHA-256 of everything that the figures depend on, by name."""
    top_k: int = 0
    """Number of candidates that are re-ranked, where the evaluation has that stage."""
    weights: Directed = Directed()
    """Weights of the fusion's scores there."""


def write_report(
    path: Path,
    split: CaptionedImages,
    findings: Findings,
    setting: Setting,
    history: Sequence[dict[str, float]],
    queries: int,
) -> None:
    """Write the page `path`.

    `history` are the rows of reports/training.csv, if there are any. `queries` is the number of example queries of each
    direction; 0 if the split has no pictures to show.
    """
    page = _template().render(
        setting=setting,
        direction_labels=DIRECTION_LABELS,
        figures=_plots(findings.evaluation, history),
        verdicts=findings.verdicts,
        trust=findings.trust,
        ladder=findings.ladder,
        ladder_figure=ladder_figure(findings.ladder) if findings.ladder else None,
        **_metrics(split, findings),
        **_failures(split, findings.failures, pictures=queries > 0),
        **_examples(split, findings, queries),
    )
    with atomic_path(path) as temporary:
        # JSON may hold halves of characters.
        temporary.write_bytes(page.encode("utf-8", "replace"))


def read_history(path: Path) -> list[dict[str, float]]:
    """Return a row for each epoch, as the train stage wrote them; none if there is no such file.

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


def _plots(evaluation: Evaluation, history: Sequence[dict[str, float]]) -> list[Picture]:
    curves = recall_curves(evaluation)
    plots = [recall_figure(curves, direction) for direction in DIRECTIONS]
    plots.append(similarity_figure(evaluation.similarities))
    return [*plots, loss_figure(history), validation_figure(history)] if history else plots


def _metrics(split: CaptionedImages, findings: Findings) -> dict[str, Any]:
    """Return the template's variables for the headline and the tables of metrics."""
    evaluation, uncertainty = findings.evaluation, findings.uncertainty
    *_, last = evaluation.ranks.values()
    images = len(last.i2t.rank)
    chance = chance_metrics(split.image_of_caption, images)
    tables = {"": _rows(evaluation.metrics, chance, uncertainty)}
    if all("folds_1k" in metrics for metrics in evaluation.metrics.values()):
        folded = {stage: metrics["folds_1k"] for stage, metrics in evaluation.metrics.items()}
        tables["Mean of five folds of 1,000 images"] = _rows(folded, _chance_of_folds(split.image_of_caption, images))
    return {
        "images": images,
        "captions": len(last.t2i.rank),
        "stages": [STAGE_LABELS[stage] for stage in evaluation.metrics],
        "rsum": {
            stage: _figure(metrics, uncertainty.intervals[stage]) for stage, metrics in evaluation.metrics.items()
        },
        "gains": uncertainty.gains,
        "resamples": RESAMPLES,
        "chance": chance["rsum"],
        "no_better_than_chance": not is_better_than_chance(evaluation.metrics, uncertainty, chance),
        "tables": tables,
        "extended": _extended(evaluation),
    }


def _chance_of_folds(image_of_caption: NDArray[np.int64], images: int) -> Metrics:
    return average_metrics(
        [chance_metrics(owner, fold.stop - fold.start) for fold, _, owner in folds(image_of_caption, images)]
    )


def _rows(metrics: dict[str, Metrics], chance: Metrics, uncertainty: Uncertainty | None = None) -> dict[str, list[Row]]:
    """Return the rows by the label of their direction; that of RSUM is empty."""

    def row(label: str, *path: str) -> Row:
        intervals = uncertainty.intervals if uncertainty else {}
        figures = [_figure(of_stage, intervals.get(stage), *path) for stage, of_stage in metrics.items()]
        return Row(label, [*figures, _figure(chance, None, *path)])

    rows = {
        direction_label: [row(label, direction, figure) for figure, (_, label) in FIGURE_LABELS.items()]
        for direction, direction_label in DIRECTION_LABELS.items()
    }
    return {**rows, "": [row("RSUM")]}


def _extended(evaluation: Evaluation) -> dict[str, list[Row]]:
    """Return the rows of the last stage by the label of their direction; none if the gallery was not judged so."""
    *_, metrics = evaluation.metrics.values()
    extended: Mapping[str, Mapping[str, float]] = metrics.get("extended", {})
    return {
        DIRECTION_LABELS[direction]: [Row(EXTENDED[name], [Figure(value)]) for name, value in figures.items()]
        for direction, figures in extended.items()
    }


def _failures(split: CaptionedImages, failures: Failures, *, pictures: bool) -> dict[str, Any]:
    """Return the template's variables for the failures; `picture` is none if there are no pictures to show."""
    by_direction: dict[str, dict[str, list[Slice]]] = {}
    for part in failures.slices:
        by_direction.setdefault(part.direction, {}).setdefault(part.attribute, []).append(part)
    return {
        "slices": by_direction,
        "fewest": FEWEST,
        "failures": failures,
        "shown": SHOWN,
        "split": split,
        "picture": partial(picture, split) if pictures else None,
    }


def _examples(split: CaptionedImages, findings: Findings, queries: int) -> dict[str, Any]:
    """Return the template's variables for the example queries."""
    *_, last = findings.evaluation.ranks.values()
    captions_of, images_of = findings.evaluation.first
    highlight = findings.highlight
    return {
        "highlights": highlight is not None,
        "image_gallery": make_gallery(split, "i2t", captions_of, last.i2t.rank, queries, highlight),
        "caption_gallery": make_gallery(split, "t2i", images_of, last.t2i.rank, queries, highlight),
    }


def _figure(metrics: Metrics, interval: dict[str, Metrics] | None, *path: str) -> Figure:
    """Return the value at `path` of the metrics, by default RSUM, and those of the ends of their `interval`."""

    def value(of: Metrics) -> float:
        for name in path or ("rsum",):
            of = of[name]
        return float(of)  # type: ignore[arg-type]

    return Figure(value(metrics), *(value(interval[side]) for side in ("low", "high")) if interval else ())


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
