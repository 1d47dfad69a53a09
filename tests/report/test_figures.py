"""Plots of the report: what they show, what they say in words, and that their bytes are the same each time."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from diptych.report.figures import (
    DARK,
    LIGHT,
    Picture,
    ladder_figure,
    loss_figure,
    recall_figure,
    similarity_figure,
    validation_figure,
)
from diptych.retrieval.ladder import Rung
from diptych.retrieval.similarities import BINS, Similarities

CURVES = [
    (direction, stage, k, float(10 * k + 5 * number + offset))
    for offset, direction in enumerate(("i2t", "t2i"))
    for number, stage in enumerate(("towers", "qb_norm", "reranked"))
    for k in (1, 2, 3)
]
RECALLS = {f"val_{direction}_recall@{k}": float(k) for direction in ("i2t", "t2i") for k in (1, 5, 10)}
HISTORY = [
    {"epoch": 1.0, "loss": 3.5, "contrastive": 2.5, "itm": 1.0, "val_rsum": 120.0, **RECALLS},
    {"epoch": 2.0, "loss": 2.25, "contrastive": 1.5, "itm": 0.75, "val_rsum": 110.0, **RECALLS},
]
RUNGS = [Rung("chance", 1.0), Rung("prior", 20.0, 18.0, 22.0), Rung("model", 300.0, 290.0, 310.0, is_model=True)]
NO_PAIRS = np.zeros(BINS, np.int64)


def svg(uri: str) -> str:
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


def texts(picture: Picture) -> list[str]:
    """Return the texts in the plot: Matplotlib draws them as paths, each after a comment."""
    return re.findall(r"<!-- (.*?) -->", svg(picture.light))


def similar() -> Similarities:
    matching, other = NO_PAIRS.copy(), NO_PAIRS.copy()
    matching[-1], other[BINS // 2] = 4, 12
    return Similarities(matching, other)


DRAW: dict[str, Callable[[], Picture]] = {
    "recall": lambda: recall_figure(CURVES, "i2t"),
    "similarities": lambda: similarity_figure(similar()),
    "ladder": lambda: ladder_figure(RUNGS),
    "loss": lambda: loss_figure(HISTORY),
    "validation": lambda: validation_figure(HISTORY),
}


@cache
def drawn(name: str) -> Picture:
    """The figure, drawn once for all tests that look at it."""
    return DRAW[name]()


@pytest.mark.parametrize("name", DRAW)
def test_each_theme_has_its_colours_and_the_same_bytes_each_time(name: str) -> None:
    picture = drawn(name)
    assert DRAW[name]() == picture
    for uri, theme, other in ((picture.light, LIGHT, DARK), (picture.dark, DARK, LIGHT)):
        page = svg(uri)
        assert theme.lines[0] in page
        assert other.lines[0] not in page
        assert "<dc:date" not in page


def test_recall_of_one_direction_has_a_line_for_each_stage() -> None:
    picture = recall_figure(CURVES, "t2i")
    assert {"towers", "query-bank normalization", "re-ranked"} < set(texts(picture))
    assert picture.alt == (
        "Text → image: recall in percent for k from 1 to 3; towers from 11.0 to 31.0; "
        "query-bank normalization from 16.0 to 36.0; re-ranked from 21.0 to 41.0."
    )


def test_the_last_stage_alone_has_the_solid_line() -> None:
    curves = [row for row in CURVES if row[1] != "qb_norm"]
    for page in (svg(drawn("recall").light), svg(recall_figure(curves, "i2t").light)):
        lines = [style for style in re.findall(r'style="(fill: none; stroke[^"]*)"', page) if "linecap" in style]
        last = [style for style in lines if any(colour in style for colour in LIGHT.lines)][-1]
        assert "dasharray" not in last


def test_similarities_are_shares_of_each_kind_of_pairs() -> None:
    assert {"matching pairs", "other pairs", "% of pairs"} < set(texts(drawn("similarities")))
    width = 2 / BINS
    matching, other = 1 - width / 2, -1 + (BINS // 2 + 0.5) * width
    expected = f"Cosines of the embeddings, on average: matching pairs {matching:.2f}; other pairs {other:.2f}."
    assert drawn("similarities").alt == expected


def test_the_ladder_has_a_bar_for_each_rung_and_the_model_in_its_own_colour() -> None:
    picture = drawn("ladder")
    assert [text for text in texts(picture) if text in ("chance", "prior", "model")] == ["chance", "prior", "model"]
    bars = re.findall(r'style="fill: (#[0-9a-f]{6})"', svg(picture.light))
    assert [bars.count(colour) for colour in LIGHT.lines[:2]] == [2, 1]
    assert picture.alt == "RSUM of each ranking: chance 1.0; prior 20.0; model 300.0."


def test_the_ladder_grows_with_its_rungs() -> None:
    pictures = ladder_figure(RUNGS[:1]), drawn("ladder")
    first, second = (re.findall(r'height="([\d.]+)pt"', svg(picture.light)) for picture in pictures)
    assert [float(first[0]), float(second[0])] == pytest.approx([72 * (0.9 + 0.32), 72 * (0.9 + 3 * 0.32)])


def test_losses_that_were_not_trained_are_left_out() -> None:
    picture = drawn("loss")
    assert {"loss", "contrastive", "image-text matching"} < set(texts(picture))
    assert "token alignment" not in texts(picture)
    assert picture.alt == "Training loss by epoch, from 3.50 to 2.25."
    without_fusion = texts(loss_figure([row | {"itm": 0.0, "alignment": 0.0} for row in HISTORY]))
    assert not {"image-text matching", "token alignment"} & set(without_fusion)


def test_the_best_epoch_is_said_whichever_it_is() -> None:
    picture = drawn("validation")
    assert {"I → T @1", "I → T @10", "T → I @5"} < set(texts(picture))
    assert picture.alt == "Recall of the towers on val by epoch; the best RSUM is 120.0."
