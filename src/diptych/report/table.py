"""Figures of an evaluation as lines of text."""

from __future__ import annotations

from diptych.report.figures import DIRECTION_LABELS
from diptych.retrieval.evaluation import Evaluation
from diptych.retrieval.metrics import Metrics
from diptych.retrieval.stages import STAGE_LABELS
from diptych.retrieval.uncertainty import Uncertainty

FIGURE_LABELS = {
    "recall@1": ("R@1", "Recall@1"),
    "recall@5": ("R@5", "Recall@5"),
    "recall@10": ("R@10", "Recall@10"),
    "r_precision": ("R-prec", "R-precision"),
    "map@r": ("mAP@R", "mAP@R"),
    "median_rank": ("median", "Median rank"),
    "mean_rank": ("mean", "Mean rank"),
    "tied": ("tied %", "Tied"),
}
"""Labels of each of `metrics.FIGURES`: of its column in the log, and of its row in the report."""


def table(evaluation: Evaluation, uncertainty: Uncertainty, chance: Metrics, gallery: str) -> str:
    """Return a line for each stage and direction, and the RSUMs with their intervals, of the gallery so called."""
    *_, last = evaluation.ranks.values()
    lines = [f"Retrieval on {gallery}, {len(last.i2t.rank):,} images and {len(last.t2i.rank):,} captions:"]
    lines.append(f"  {'':26}" + "".join(f"{column:>8}" for column, _ in FIGURE_LABELS.values()))
    for stage, metrics in [*evaluation.metrics.items(), ("chance", chance)]:
        for direction, label in DIRECTION_LABELS.items():
            values = "".join(f"{metrics[direction][figure]:8.1f}" for figure in FIGURE_LABELS)
            lines.append(f"  {STAGE_LABELS.get(stage, stage):10} {label:15}{values}")
    rsums = []
    for stage, metrics in evaluation.metrics.items():
        low, high = (uncertainty.intervals[stage][side]["rsum"] for side in ("low", "high"))
        rsums.append(f"{STAGE_LABELS[stage]} {metrics['rsum']:.1f} ({low:.1f} to {high:.1f})")
    return "\n".join([*lines, f"  RSUM: {', '.join(rsums)}; in brackets: 95 % confidence intervals"])
