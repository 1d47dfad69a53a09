"""Plots of the report: SVG in a light and a dark version, the same bytes for the same figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diptych.retrieval.ladder import Rung
from diptych.retrieval.similarities import Similarities
from diptych.retrieval.stages import STAGE_LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (4.6, 3.0)
DIRECTION_LABELS = {"i2t": "Image → text", "t2i": "Text → image"}
LOSSES = {
    "loss": "loss",
    "contrastive": "contrastive",
    "itm": "image-text matching",
    "alignment": "token alignment",
}
"""Labels of the losses in reports/training.csv."""


class Theme(NamedTuple):
    """Colours that contrast with the page."""

    ink: str
    grid: str
    lines: tuple[str, str, str, str]


LIGHT = Theme("#3b4252", "#d9dee7", ("#2563a8", "#b4530a", "#3f7d20", "#7d3fa8"))
DARK = Theme("#c9d1de", "#39414f", ("#7db7f0", "#f0a35e", "#9bd07a", "#c79bf0"))


class Picture(NamedTuple):
    """A plot as data URIs, and its description in words."""

    light: str
    dark: str
    alt: str


def recall_figure(curves: Sequence[tuple[str, str, int, float]], direction: str) -> Picture:
    """Plot recall over k of one direction, a line for each stage; `curves` are those of `evaluation.recall_curves`."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for of_direction, stage, k, recall in curves:
        if of_direction == direction:
            lines.setdefault(stage, []).append((k, recall))

    # The last stage, which counts, has the solid line.
    styles = ("--", ":", "-")[-len(lines) :]

    def plot(axes: Axes, theme: Theme) -> None:
        for (stage, points), colour, style in zip(lines.items(), theme.lines, styles, strict=False):
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, label=STAGE_LABELS[stage])
        _label(axes, f"{DIRECTION_LABELS[direction]}: recall", "k", "recall in %")
        axes.set_ylim(0, 102)

    ends = "; ".join(
        f"{STAGE_LABELS[stage]} from {points[0][1]:.1f} to {points[-1][1]:.1f}" for stage, points in lines.items()
    )
    return _draw(
        plot,
        f"{DIRECTION_LABELS[direction]}: recall in percent for k from 1 to {max(k for _, _, k, _ in curves)}; {ends}.",
    )


def similarity_figure(similarities: Similarities) -> Picture:
    """Plot the cosines of the matching pairs and of the others, each as shares of their number."""
    shares, edges = similarities.shares(), similarities.edges()
    filled = np.flatnonzero(similarities.matching + similarities.other)
    first, last = int(filled[0]), int(filled[-1]) + 1
    names = ("matching pairs", "other pairs")

    def plot(axes: Axes, theme: Theme) -> None:
        for name, share, colour, style in zip(names, shares, theme.lines, ("-", "--"), strict=False):
            axes.stairs(share[first:last], edges[first : last + 1], color=colour, linestyle=style, label=name)
        _label(axes, "Similarity", "cosine of the embeddings", "% of pairs")

    middles = (edges[:-1] + edges[1:]) / 2
    means = "; ".join(f"{name} {share @ middles / 100:.2f}" for name, share in zip(names, shares, strict=True))
    return _draw(plot, f"Cosines of the embeddings, on average: {means}.")


def ladder_figure(rungs: Sequence[Rung]) -> Picture:
    """Plot a bar for each rung, the first on top, with its interval; those of the model have a colour of their own."""

    def plot(axes: Axes, theme: Theme) -> None:
        positions = range(len(rungs))
        colours = [theme.lines[1] if rung.is_model else theme.lines[0] for rung in rungs]
        axes.barh(positions, [rung.rsum for rung in rungs], color=colours, height=0.6)
        for position, rung in zip(positions, rungs, strict=True):
            if rung.low is not None and rung.high is not None:
                axes.plot([rung.low, rung.high], [position, position], color=theme.ink, linewidth=1.5)
        axes.set_yticks(positions, [rung.name for rung in rungs])
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("RSUM, 95 % confidence interval")

    ends = "; ".join(f"{rung.name} {rung.rsum:.1f}" for rung in rungs)
    return _draw(plot, f"RSUM of each ranking: {ends}.", height=0.9 + 0.32 * len(rungs))


def loss_figure(history: Sequence[dict[str, float]]) -> Picture:
    """Plot the losses of each epoch; one that is always zero has no weight in training, and no line."""
    names = [name for name in LOSSES if any(row.get(name) for row in history)]

    def plot(axes: Axes, theme: Theme) -> None:
        for name, colour, style in zip(names, theme.lines, ("-", "--", ":", "-."), strict=False):
            _by_epoch(axes, history, name, color=colour, linestyle=style, label=LOSSES[name])
        _label(axes, "Training: loss", "epoch", "loss")

    return _draw(plot, f"Training loss by epoch, from {history[0]['loss']:.2f} to {history[-1]['loss']:.2f}.")


def validation_figure(history: Sequence[dict[str, float]]) -> Picture:
    """Plot recall on val after each epoch: a colour for each k, solid for image → text, dashed for text → image."""

    def plot(axes: Axes, theme: Theme) -> None:
        for direction, short, style in (("i2t", "I → T", "-"), ("t2i", "T → I", "--")):
            for k, colour in zip((1, 5, 10), theme.lines, strict=False):
                name, label = f"val_{direction}_recall@{k}", f"{short} @{k}"
                _by_epoch(axes, history, name, color=colour, linestyle=style, label=label)
        _label(axes, "Validation: recall of the towers", "epoch", "recall in %", columns=2)
        axes.set_ylim(0, 102)

    best = max(row["val_rsum"] for row in history)
    return _draw(plot, f"Recall of the towers on val by epoch; the best RSUM is {best:.1f}.")


def _by_epoch(axes: Axes, history: Sequence[dict[str, float]], name: str, **style: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = "o" if len(history) <= 15 else None
    axes.plot([row["epoch"] for row in history], [row[name] for row in history], marker=marker, markersize=3, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label(axes: Axes, title: str, x: str, y: str, columns: int = 1) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=8, ncols=columns)


def _draw(plot: Callable[[Axes, Theme], None], alt: str, height: float = INCHES[1]) -> Picture:
    return Picture(_svg(plot, LIGHT, height), _svg(plot, DARK, height), alt)


def _svg(plot: Callable[[Axes, Theme], None], theme: Theme, height: float) -> str:
    """Return the plot as a data URI: an SVG on a transparent ground, without date, version or random ids."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink)
    settings |= {"axes.edgecolor": theme.grid, "grid.color": theme.grid, "font.size": 9, "svg.hashsalt": "diptych"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(INCHES[0], height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        plot(axes, theme)
        content = io.BytesIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()
