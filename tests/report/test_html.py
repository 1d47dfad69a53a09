"""The page: self-contained, the same each time, and safe with any caption."""

import base64
import re
from html.parser import HTMLParser

import pytest
import torch

from diptych.errors import DiptychError
from diptych.report.html import Findings, Setting, read_history, write_report
from diptych.report.table import FIGURE_LABELS
from diptych.retrieval import metrics
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.evaluation import evaluate_gallery
from diptych.retrieval.failures import find_failures
from diptych.retrieval.reranking import Directed, Weights
from diptych.retrieval.uncertainty import Gain, judge

CPU = torch.device("cpu")
WEIGHTS = Directed(Weights(1.0, 0.5), Weights(0.0, 2.0))
SETTING = Setting("test", {"Weights": "abc123"}, 4, WEIGHTS)
COLUMNS = [f"val_{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]
HISTORY = (
    "epoch,loss,contrastive,itm,learning_rate,temperature,val_rsum,"
    + ",".join(COLUMNS)
    + "\n"
    + ("1,3.5,2.5,1.0,0.001,0.07,120.0,10,20,30,10,20,30\n2,2.5,1.75,0.75,0.0005,0.069,180.0,20,30,40,20,30,40\n")
)


@pytest.fixture
def render(tmp_path, model, split, querybank):
    def render(history=(), setting=SETTING, change=lambda *both: None):
        embedded = embed_split(model, split, batch_size=4, device=CPU)
        evaluation = evaluate_gallery(
            model, embedded.biased(querybank, model.logit_scale.item()), top_k=4, weights=WEIGHTS, device=CPU
        )
        uncertainty = judge(evaluation.ranks, split.image_of_caption)
        change(evaluation, uncertainty)
        failures = find_failures(evaluation, split.image_of_caption, split.captions, {})
        findings = Findings(evaluation, uncertainty, failures)
        write_report(tmp_path / "report.html", split, findings, setting, history, 4)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return render


@pytest.fixture
def history(tmp_path):
    (tmp_path / "training.csv").write_text(HISTORY)
    return read_history(tmp_path / "training.csv")


@pytest.fixture
def page(render, history, drawn):
    """The page with a history, to be looked at."""
    if not drawn:
        drawn.append(render(history))
    return drawn[0]


@pytest.fixture(scope="module")
def drawn():
    return []


class Tags(HTMLParser):
    """All start tags of a page, and whether every one of them that must be closed is."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed(page):
    assert Tags(page).open == []


def test_nothing_is_loaded_and_nothing_runs(page):
    for tag, attributes in Tags(page).tags:
        assert tag != "script"
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)


def test_every_picture_has_a_text_in_its_place(page):
    pictures = [attributes for tag, attributes in Tags(page).tags if tag == "img"]
    assert pictures
    assert all(attributes["alt"] for attributes in pictures)


def test_the_same_evaluation_gives_the_same_bytes(render, history, page):
    assert render(history) == page


def test_figures_carry_no_date_and_no_version(page):
    drawings = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(drawings) == 10
    for figure in drawings:
        svg = base64.b64decode(figure).decode()
        assert "dc:date" not in svg
        assert "Matplotlib" not in svg


def test_captions_are_text_whatever_they_hold(render, split, undrawn):
    split.captions = [f'<script>alert({j})</script>" onload="x' for j in range(len(split.captions))]
    page = render()
    assert "<script" not in page
    assert '" onload="' not in page
    assert "&lt;script&gt;" in page


def test_without_a_training_history_the_page_says_so(render, page, undrawn):
    assert "There are no training curves" in render()
    assert "There are no training curves" not in page


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (Gain(10.0, 8.0, 12.5, 0.001), "gains 10.0 (8.0 to 12.5)."),
        (Gain(-1.0, -1.5, -0.5, 0.01), "loses 1.0 (0.5 to 1.5)."),
        (Gain(1.0, -0.5, 2.5, 0.3), "changes RSUM by +1.0, which may be chance (-0.5 to 2.5)."),
        (Gain(0.0, 0.0, 0.0, 1.0), "changes nothing."),
    ],
)
def test_what_each_stage_brings_is_said_as_it_is(render, undrawn, gain, words):
    def change(evaluation, uncertainty):
        uncertainty.gains["qb_norm"]["towers"] = uncertainty.gains["reranked"]["qb_norm"] = gain

    page = " ".join(render(change=change).split())
    assert f"queries in general, which {words}" in page
    assert f"no weight. That {words}" in page


def test_folds_have_a_table_of_their_own(render, page, split, monkeypatch, undrawn):
    assert "Mean of five folds" not in page
    monkeypatch.setattr(metrics, "FOLDED_IMAGES", len(split))
    assert "Mean of five folds of 1,000 images" in render()


def test_each_figure_has_labels_in_the_order_of_the_metrics():
    assert list(FIGURE_LABELS) == list(metrics.FIGURES)


def test_relevant_results_are_marked_by_words_not_by_colour_alone(page):
    assert "✓ relevant" in page


def test_history_is_read_as_numbers(history):
    assert [row["loss"] for row in history] == [3.5, 2.5]


def test_a_missing_history_is_an_empty_one(tmp_path):
    assert read_history(tmp_path / "training.csv") == []


@pytest.mark.parametrize("content", ["epoch,loss\n1,high\n", "epoch,loss\n1\n", "epoch,loss\n1,2,3\n"])
def test_a_history_that_is_no_table_of_numbers_is_refused(tmp_path, content):
    (tmp_path / "training.csv").write_text(content)
    with pytest.raises(DiptychError, match="is not a table of numbers"):
        read_history(tmp_path / "training.csv")
