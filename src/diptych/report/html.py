"""reports/report.html: one self-contained page without scripts, the same bytes for the same evaluation."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.report.figures import (
    DIRECTIONS,
    STAGES,
    Picture,
    ladder_figure,
    loss_figure,
    recall_figure,
    similarity_figure,
    validation_figure,
)
from diptych.report.gallery import Shown, caption_gallery, image_gallery, picture
from diptych.report.highlights import Highlight
from diptych.retrieval.evaluation import Evaluation, recall_curves
from diptych.retrieval.failures import SHOWN, Failures
from diptych.retrieval.judgements import LABELS as EXTENDED
from diptych.retrieval.ladder import Rung, Verdict, is_better_than_chance
from diptych.retrieval.metrics import FIGURES, Metrics, average_metrics, chance_metrics, folds
from diptych.retrieval.reranking import Weights
from diptych.retrieval.slices import FEWEST, Slice
from diptych.retrieval.uncertainty import RESAMPLES, Uncertainty

LABELS = dict(
    zip(
        FIGURES,
        ("Recall@1", "Recall@5", "Recall@10", "R-precision", "mAP@R", "Median rank", "Mean rank", "Tied"),
        strict=True,
    )
)


class Figure(NamedTuple):
    """A number, and where 95 % of the resamples lie, if they were drawn."""

    value: float
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """A line of the metrics table."""

    name: str
    figures: list[Figure]
    """Of each stage, and of chance."""


class Findings(NamedTuple):
    """What is known of a split's retrieval."""

    evaluation: Evaluation
    uncertainty: Uncertainty
    """Of the evaluation, and of what it is compared with."""
    failures: Failures
    ladder: Sequence[Rung] = ()
    verdicts: Sequence[Verdict] = ()
    highlight: Highlight | None = None
    """What the fusion looked at in a pair, where there is one."""


class Setting(NamedTuple):
    """What the evaluation was done with."""

    split: str
    made_of: dict[str, str]
    """Names and SHA-256 of what the figures depend on."""
    top_k: int = 0
    """Of the re-ranking, if there was one."""
    weights: Weights = Weights()
    """Likewise."""


def write_report(
    path: Path,
    split: Shown,
    findings: Findings,
    setting: Setting,
    history: Sequence[dict[str, float]],
    queries: int,
) -> None:
    """Renders the report.

    Args:
        path: the page.
        split: what was evaluated.
        findings: of it.
        setting: what it was done with.
        history: rows of reports/training.csv; may be empty.
        queries: how many queries to show of each direction; 0: nothing is shown, where there are no pictures.
    """
    evaluation, uncertainty, failures, ladder, verdicts, highlight = findings
    curves = recall_curves(evaluation)
    figures = [recall_figure(curves, direction) for direction in DIRECTIONS]
    figures += [similarity_figure(evaluation.similarities), *_training_figures(history)]
    *_, last = evaluation.ranks.values()
    images, captions = len(last.i2t.rank), len(last.t2i.rank)
    chance = chance_metrics(split.image_of_caption, images)
    tables = {"": _rows(evaluation.metrics, chance, uncertainty)}
    if all("folds_1k" in metrics for metrics in evaluation.metrics.values()):
        folded = {stage: metrics["folds_1k"] for stage, metrics in evaluation.metrics.items()}
        tables["Mean of five folds of 1,000 images"] = _rows(folded, _chance_of_folds(split.image_of_caption, images))
    content = (
        _environment()
        .get_template("report.html.j2")
        .render(
            setting=setting,
            images=images,
            captions=captions,
            stages=[STAGES[stage] for stage in evaluation.metrics],
            rsum={
                stage: _figure(metrics, uncertainty.intervals[stage]) for stage, metrics in evaluation.metrics.items()
            },
            gains=uncertainty.gains,
            resamples=RESAMPLES,
            chance=chance["rsum"],
            no_better_than_chance=not is_better_than_chance(evaluation.metrics, uncertainty, chance),
            tables=tables,
            extended=_extended(evaluation),
            verdicts=verdicts,
            ladder=ladder,
            ladder_figure=ladder_figure(ladder) if ladder else None,
            figures=figures,
            highlights=highlight is not None,
            **_failures(split, failures, pictures=queries > 0),
            image_gallery=image_gallery(split, evaluation.first[0], last.i2t.rank, queries, highlight),
            caption_gallery=caption_gallery(split, evaluation.first[1], last.t2i.rank, queries, highlight),
        )
    )
    with atomic_path(path) as temporary:
        # JSON may hold halves of characters.
        temporary.write_bytes(content.encode("utf-8", "replace"))


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


def _chance_of_folds(image_of_caption: NDArray[np.int64], images: int) -> Metrics:
    return average_metrics(
        [chance_metrics(own, fold.stop - fold.start) for fold, _, own in folds(image_of_caption, images)]
    )


def _rows(metrics: dict[str, Metrics], chance: Metrics, uncertainty: Uncertainty | None = None) -> dict[str, list[Row]]:
    """Rows of each direction, and RSUM, which belongs to none."""

    def row(label: str, *path: str) -> Row:
        ends = uncertainty.intervals if uncertainty else {}
        figures = [_figure(of_stage, ends.get(stage), *path) for stage, of_stage in metrics.items()]
        return Row(label, [*figures, _figure(chance, None, *path)])

    ways = {name: [row(label, way, figure) for figure, label in LABELS.items()] for way, name in DIRECTIONS.items()}
    return {**ways, "": [row("RSUM")]}


def _extended(evaluation: Evaluation) -> dict[str, list[Row]]:
    """Rows of each direction, of the last stage alone; none, if its gallery is not that of the judgements."""
    *_, metrics = evaluation.metrics.values()
    found: Mapping[str, Mapping[str, float]] = metrics.get("extended", {})
    return {
        DIRECTIONS[way]: [Row(EXTENDED[name], [Figure(value)]) for name, value in figures.items()]
        for way, figures in found.items()
    }


def _failures(split: Shown, failures: Failures, *, pictures: bool) -> dict[str, Any]:
    """What the template shows of them."""
    images, captions = failures.hubs["t2i"], failures.hubs["i2t"]
    return {
        "slices": _slice_rows(failures.slices),
        "fewest": FEWEST,
        "failures": failures,
        "hub_images": [
            (picture(split, image), int(images.occurrences[image]))
            for image in (images.most(SHOWN) if pictures else [])
        ],
        "missed_images": [
            (picture(split, image), rank) for image, rank in (failures.missed["i2t"] if pictures else [])
        ],
        "missed_captions": [
            (split.captions[caption], picture(split, int(split.image_of_caption[caption])) if pictures else None, rank)
            for caption, rank in failures.missed["t2i"]
        ],
        "hub_captions": [
            (split.captions[caption], int(captions.occurrences[caption])) for caption in captions.most(SHOWN)
        ],
        "confusions": [
            (picture(split, one.image), picture(split, one.other), one.captions, one.near_duplicates)
            for one in (failures.confusions if pictures else [])
        ],
    }


def _slice_rows(slices: Sequence[Slice]) -> dict[str, list[tuple[str, list[tuple[int, list[Figure], bool] | None]]]]:
    """By attribute, a row a label: of image → text and of text → image the number of queries and the recalls."""
    rows: dict[str, dict[str, dict[str, Slice]]] = {}
    for one in slices:
        rows.setdefault(one.attribute, {}).setdefault(one.label, {})[one.way] = one
    return {
        attribute: [
            (
                label,
                [
                    (found.queries, [Figure(*ends) for ends in found.recalls.values()], found.worse)
                    if (found := by_way.get(way))
                    else None
                    for way in DIRECTIONS
                ],
            )
            for label, by_way in labels.items()
        ]
        for attribute, labels in rows.items()
    }


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
