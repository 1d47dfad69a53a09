"""The evaluate stage on a small real model and prepared split."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from _pytest.logging import LogCaptureHandler
from PIL import Image
from playwright.sync_api import sync_playwright
from tiny import PREPROCESSING, RERANKING, make_model, make_querybank, model_settings, write_prepared

from diptych.config import Params, Splits
from diptych.data.prepared import Prepared
from diptych.errors import DiptychError
from diptych.model.package import load_model, save_model
from diptych.model.querybank import QueryBank
from diptych.project.workspace import Workspace
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.evaluation import evaluate_gallery
from diptych.retrieval.metrics import metrics_from_ranks, retrieval_metrics
from diptych.retrieval.ranking import ranks_from_embeddings
from diptych.retrieval.reranking import Directed, Weights
from diptych.retrieval.stored_ranks import load_ranks, save_ranks
from diptych.stages.evaluate import run

pytestmark = pytest.mark.slow

OUTPUTS = (
    "metrics.json",
    "baselines.json",
    "calibration.json",
    "failures.json",
    "ladder.json",
    "uncertainty.json",
    "report.html",
    "plots/recall_at_k.csv",
    "plots/similarities.csv",
)


@pytest.fixture(scope="module")
def _unevaluated(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("unevaluated") / "workspace")
    write_prepared(workspace.prepared, train=4, val=4, test=12)
    save_model(
        workspace.model,
        make_model(vocabulary_size=200),
        model_settings(),
        workspace.prepared / "tokenizer",
        PREPROCESSING,
        RERANKING,
        make_querybank(),
    )
    write_manifest(workspace)
    own = Prepared(workspace.prepared, Splits()).split("test").image_of_caption
    random = np.random.default_rng(0)
    vectors = {name: (random.normal(size=(12, 4)), random.normal(size=(24, 4))) for name in ("prior", "cca")}
    ranks = {name: ranks_from_embeddings(*both, own) for name, both in vectors.items()}
    save_ranks(workspace.baselines, ranks)
    save_ranks(workspace.controls, {"mlp_fusion": ranks["cca"]})
    return workspace


@pytest.fixture
def workspace(_unevaluated: Workspace, tmp_path: Path) -> Workspace:
    """A project that is to be evaluated."""
    return Workspace(shutil.copytree(_unevaluated.root, tmp_path / "workspace"))


@pytest.fixture(scope="module", autouse=True)
def few_images_are_enough() -> Iterator[None]:
    """For slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diptych.retrieval.slices.FEWEST", 1)
        yield


class Evaluated(NamedTuple):
    """A project that was evaluated, to be looked at."""

    workspace: Workspace
    lines: list[str]
    """What was logged."""

    def json(self, name: str) -> Any:
        return json.loads((self.workspace.reports / f"{name}.json").read_text())

    @property
    def page(self) -> str:
        return (self.workspace.reports / "report.html").read_text()


@pytest.fixture(scope="module")
def evaluated(
    _unevaluated: Workspace, few_images_are_enough: None, tmp_path_factory: pytest.TempPathFactory
) -> Evaluated:
    workspace = Workspace(shutil.copytree(_unevaluated.root, tmp_path_factory.mktemp("evaluated") / "workspace"))
    handler = LogCaptureHandler()
    log = logging.getLogger("diptych")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        run(workspace, params())
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return Evaluated(workspace, [record.getMessage() for record in handler.records])


def write_manifest(workspace: Workspace) -> None:
    """What evaluate reads of it, of all images."""
    images = pd.read_parquet(workspace.prepared / "images.parquet")["image_id"]
    shape = {"width": 40 + images % 3, "height": 40, "phash": [f"{number:016x}" for number in images]}
    shape["objects"] = ['["dog", "ball"]' if number % 2 else '["dog"]' for number in images]
    pd.DataFrame({"image_id": images, **shape}).to_parquet(workspace.manifest)


def drawings(page: str) -> list[str]:
    """Return the plots in the page as SVG."""
    return [base64.b64decode(one).decode() for one in re.findall(r'data:image/svg\+xml;base64,([^" ]+)', page)]


def params(**changes: object) -> Params:
    return Params.model_validate(
        {"threads": 1, "device": "cpu", "evaluate": {"top_k": 4, "report_queries": 2}, **changes}
    )


def test_metrics_have_their_form_before_and_after_reranking(evaluated: Evaluated) -> None:
    metrics = evaluated.json("metrics")
    assert list(metrics) == ["towers", "qb_norm", "reranked"]
    for stage in metrics.values():
        assert list(stage) == ["i2t", "t2i", "rsum"]
        for direction in ("i2t", "t2i"):
            recalls = ["recall@1", "recall@5", "recall@10"]
            assert list(stage[direction]) == [*recalls, "r_precision", "map@r", "median_rank", "mean_rank", "tied"]


def test_the_towers_metrics_are_those_of_the_test_split(evaluated: Evaluated) -> None:
    workspace = evaluated.workspace
    split = Prepared(workspace.prepared, params().data.splits).split("test")
    embedded = embed_split(load_model(workspace.model).model, split, batch_size=64, device=torch.device("cpu"))
    expected = retrieval_metrics(embedded.image, embedded.text, split.image_of_caption)
    assert evaluated.json("metrics")["towers"] == expected


def test_every_figure_lies_in_its_interval(evaluated: Evaluated) -> None:
    metrics, sure = evaluated.json("metrics"), evaluated.json("uncertainty")
    for stage, figures in metrics.items():
        low, high = sure["intervals"][stage]["low"], sure["intervals"][stage]["high"]
        assert low["rsum"] <= figures["rsum"] <= high["rsum"]
        for direction in ("i2t", "t2i"):
            assert list(low[direction]) == list(figures[direction])
            assert all(
                low[direction][name] <= value <= high[direction][name] for name, value in figures[direction].items()
            )
    assert {name: list(over) for name, over in sure["gains"].items()} == {
        "prior": [],
        "cca": ["prior"],
        "mlp_fusion": ["prior", "cca"],
        "towers": ["prior", "cca", "mlp_fusion"],
        "qb_norm": ["prior", "cca", "mlp_fusion", "towers"],
        "reranked": ["prior", "cca", "mlp_fusion", "towers", "qb_norm"],
    }
    gain = sure["gains"]["reranked"]["towers"]
    assert gain["rsum"] == metrics["reranked"]["rsum"] - metrics["towers"]["rsum"]
    assert gain["low"] <= gain["rsum"] <= gain["high"]


def test_another_run_writes_the_same_bytes(evaluated: Evaluated, workspace: Workspace) -> None:
    before = {name: (evaluated.workspace.reports / name).read_bytes() for name in OUTPUTS}
    run(workspace, params())
    assert {name: (workspace.reports / name).read_bytes() for name in OUTPUTS} == before


def test_the_plot_has_a_line_for_each_direction_and_stage(evaluated: Evaluated) -> None:
    with (evaluated.workspace.reports / "plots" / "recall_at_k.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["direction"], row["stage"]) for row in rows} == {
        (direction, stage) for direction in ("i2t", "t2i") for stage in ("towers", "qb_norm", "reranked")
    }
    assert {int(row["k"]) for row in rows} == set(range(1, 51))
    assert all(0 <= float(row["recall"]) <= 100 for row in rows)


def test_the_split_that_plays_test_is_the_one_evaluated(workspace: Workspace, undrawn: None) -> None:
    of_val = params(data={"splits": {"test": "val"}})
    with pytest.raises(DiptychError, match=r"baselines\.npz holds prior of another test split"):
        run(workspace, of_val)
    save_ranks(workspace.baselines, {})
    save_ranks(workspace.controls, {})
    run(workspace, of_val)
    assert "Gallery (val)" in (workspace.reports / "report.html").read_text()


def test_a_table_of_the_metrics_is_logged(evaluated: Evaluated) -> None:
    said = "\n".join(evaluated.lines)
    assert "Retrieval on test, 12 images and" in said
    assert "re-ranked  Text → image" in said
    assert "RSUM: towers" in said


def test_without_a_model_nothing_is_written(workspace: Workspace) -> None:
    shutil.rmtree(workspace.model)
    with pytest.raises(DiptychError, match="run `dvc repro train`"):
        run(workspace, params())
    assert not workspace.reports.exists()


def test_each_stage_ranks_by_what_the_model_brings(workspace: Workspace, undrawn: None) -> None:
    """Bank, strength and each weight move some rank here, so none of them is left out or taken for another."""
    config = workspace.model / "config.json"
    content = json.loads(config.read_text())
    weights = Directed(Weights(itm=16.0, alignment=8.0), Weights(itm=4.0, alignment=12.0))
    content["reranking"] |= {direction: own._asdict() for direction, own in weights._asdict().items()}
    config.write_text(json.dumps(content))
    run(workspace, params(evaluate={"top_k": 12, "report_queries": 2}))
    metrics = json.loads((workspace.reports / "metrics.json").read_text())
    loaded = load_model(workspace.model)
    split = Prepared(workspace.prepared, params().data.splits).split("test")
    embedded = embed_split(loaded.model, split, batch_size=64, device=torch.device("cpu"))
    bank = make_querybank()._replace(strength=RERANKING.bias_strength)

    def expected(bank: QueryBank, weights: Directed) -> dict[str, Any]:
        made = evaluate_gallery(
            loaded.model,
            embedded.biased(bank, loaded.model.logit_scale.item()),
            top_k=12,
            weights=weights,
            device=torch.device("cpu"),
        )
        return made.metrics

    assert metrics == expected(bank, weights)
    others = [
        (bank._replace(strength=0.0), weights),
        *((bank, weights._replace(**{name: own._replace(itm=0.0)})) for name, own in weights._asdict().items()),
        *((bank, weights._replace(**{name: own._replace(alignment=0.0)})) for name, own in weights._asdict().items()),
        (bank, Directed(weights.t2i, weights.i2t)),
    ]
    assert [metrics != expected(*other) for other in others] == [True] * len(others)


def test_baselines_are_compared_on_the_same_queries(evaluated: Evaluated) -> None:
    workspace = evaluated.workspace
    found = {**load_ranks(workspace.baselines, 12, 24), **load_ranks(workspace.controls, 12, 24)}
    expected = {name: metrics_from_ranks(*both) for name, both in found.items()}
    assert evaluated.json("baselines") == expected
    sure = evaluated.json("uncertainty")
    metrics = evaluated.json("metrics")
    gain = sure["gains"]["reranked"]["cca"]
    assert gain["rsum"] == pytest.approx(metrics["reranked"]["rsum"] - expected["cca"]["rsum"])
    assert gain["low"] <= gain["rsum"] <= gain["high"]
    said = evaluated.lines
    assert any(line.startswith("Joint modelling beats single-modality methods: ") for line in said)
    assert any(re.fullmatch(r"Re-ranking: \d+\.\d ms a query for [+-]\d+\.\d RSUM", line) for line in said)
    assert "Joint modelling beats single-modality methods: " in evaluated.page
    assert "frozen towers: CCA" in evaluated.page


def test_without_baselines_there_is_no_ladder(workspace: Workspace, undrawn: None) -> None:
    save_ranks(workspace.baselines, {})
    save_ranks(workspace.controls, {})
    run(workspace, params())
    assert json.loads((workspace.reports / "baselines.json").read_text()) == {}
    page = (workspace.reports / "report.html").read_text()
    assert "ladder" not in page.split("</style>")[1]
    assert "Joint modelling" not in page


def test_a_fusion_that_was_not_trained_is_no_part_of_the_claims(workspace: Workspace, undrawn: None) -> None:
    run(workspace, params(train={"objectives": {"itm": 0.0}}))
    claims = [verdict["claim"] for verdict in json.loads((workspace.reports / "ladder.json").read_text())["verdicts"]]
    assert claims == ["Joint modelling beats single-modality methods", "Towers that learn beat frozen ones"]


def test_where_nothing_is_re_ranked_people_read_that_once_and_programs_have_the_stage(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    save_ranks(workspace.controls, {})
    with caplog.at_level(logging.INFO, "diptych"):
        run(workspace, params(train={"objectives": {"itm": 0.0}}))
    sentence = r"No fusion was trained \((<code>)?train.objectives.itm(</code>)? is 0\), so nothing is re-ranked\."
    for text in ((workspace.reports / "report.html").read_text(), caplog.text):
        assert len(re.findall(sentence, text)) == len(re.findall("re-?rank", text, re.IGNORECASE)) == 1
        assert "query-bank normalization" in text.lower()
    page = (workspace.reports / "report.html").read_text()
    assert '<div class="main"><dt>RSUM with query-bank normalization</dt>' in page
    lines = [comment for svg in drawings(page) for comment in re.findall("<!-- (.*?) -->", svg)]
    assert "query-bank normalization" in lines
    assert not any("re-ranked" in line for line in lines)
    metrics = json.loads((workspace.reports / "metrics.json").read_text())
    assert list(metrics) == ["towers", "qb_norm", "reranked"]


def test_a_calibration_is_examined_on_test(workspace: Workspace, undrawn: None) -> None:
    config = workspace.model / "config.json"
    content = json.loads(config.read_text())
    assert content["calibration"] is None
    calibration = {"intercept": 0.0, "score": 0.2, "margin": 1.0, "images": 4, "reliability": []}
    config.write_text(json.dumps({**content, "calibration": calibration}))
    run(workspace, params())
    found = json.loads((workspace.reports / "calibration.json").read_text())
    assert found["good"] + found["weak"] == 24
    assert found["threshold"] == 0.5
    recall = json.loads((workspace.reports / "metrics.json").read_text())["reranked"]["t2i"]["recall@1"]
    right = found["good"] * found["precision"]["share"] + found["weak"] * (1 - found["weak_wrong"]["share"])
    assert right == pytest.approx(24 * recall / 100)
    assert "When nothing fits" in (workspace.reports / "report.html").read_text()


def test_without_a_calibration_nothing_is_said_of_it(evaluated: Evaluated) -> None:
    assert evaluated.json("calibration") == {}
    assert "When nothing fits" not in evaluated.page


def test_failures_are_told_in_numbers_and_pictures(evaluated: Evaluated) -> None:
    failures = evaluated.json("failures")
    attributes = {one["attribute"] for one in failures["slices"]}
    of_objects = {"objects in the image", "an image that shows"}
    assert attributes == {"brightness in %", "width / height", "words in the caption"} | of_objects
    counts = dict.fromkeys(attributes, 0)
    for one in failures["slices"]:
        counts[one["attribute"]] += one["queries"] if one["direction"] == "t2i" else 0
    # All images show a dog, so only the ball makes a difference: it is in every second one, in 12 of their captions.
    assert counts == dict.fromkeys(attributes, 24) | {"an image that shows": 12}
    page = evaluated.page
    assert "Where it fails" in page
    assert "Confused most often" in page
    assert [one["rank"] > 10 for one in failures["missed"]["t2i"]] == [True] * len(failures["missed"]["t2i"])
    assert ("Missed most" in page) is bool(failures["missed"]["t2i"])


@pytest.mark.parametrize("keep", [None, 3])
def test_a_manifest_that_does_not_fit_is_an_error(workspace: Workspace, keep: int | None, undrawn: None) -> None:
    if keep is None:
        workspace.manifest.unlink()
    else:
        pd.read_parquet(workspace.manifest).head(keep).to_parquet(workspace.manifest)
    with pytest.raises(DiptychError, match=r"manifest\.parquet (is missing or damaged|lacks image)"):
        run(workspace, params())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_report_fits_a_phone_and_a_laptop(workspace: Workspace, width: int, theme: str) -> None:
    """In real Chromium: no error in its console, nothing fetched, nothing wider than the window."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    run(workspace, params(evaluate={"top_k": 4, "report_queries": 8}))
    page_file = workspace.reports / "report.html"
    said: list[str] = []
    fetched: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url.partition(":")[0]))
        page.goto(page_file.as_uri())
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        wide = page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter(element => {
                const box = element.getBoundingClientRect();
                return box.width && (box.right > innerWidth + 1 || box.left < -1);
            }).map(element => element.outerHTML.slice(0, 200))"""
        )
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        pictures = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        browser.close()
    assert (said, wide, overflow) == ([], [], 0)
    assert set(fetched) <= {"file", "data"}
    assert fetched.count("file") == 1
    assert pictures
    assert min(pictures) > 0
    assert (shot.width, shot.height > 2000) == (width, True)
    corner = np.asarray(shot.convert("L"))[2, 2]
    assert corner > 200 if theme == "light" else corner < 60
