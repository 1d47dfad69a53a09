"""A model card says what a version is for, learned from and can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.registry.decision import Check, Decision
from diptych.registry.model_card import model_card, with_decision

RECALLS = {"recall@1": 40.0, "recall@5": 60.0, "recall@10": 70.0}
METRICS = {stage: {"i2t": RECALLS, "t2i": RECALLS, "rsum": 340.0} for stage in ("towers", "qb_norm", "reranked")}
TAGS = {"data_md5": "0123.dir", "git_sha": "abcdef0123456789"}


def slice_of(label: str, recall: float, *, worse: bool) -> dict[str, Any]:
    recalls = {"recall@1": [9.0, 8.0, 10.0], "recall@10": [recall, recall - 5, recall + 5]}
    return {"attribute": "words", "label": label, "direction": "t2i", "queries": 30, "recalls": recalls, "worse": worse}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project with reports, and with a dataset of known licences."""
    workspace = Workspace(tmp_path)
    workspace.reports.mkdir()
    workspace.data.mkdir()
    licences = [{"id": 1, "name": "CC BY 4.0"}, {"id": 2, "name": "CC BY 4.0"}, {"id": 3, "name": "CC0"}]
    dataset = {"images": [], "annotations": [], "licenses": licences}
    (workspace.data / "captions.json").write_text(json.dumps(dataset))
    workspace.manifest.parent.mkdir()
    pd.DataFrame({"split": ["train"] * 1500 + ["test"] * 30}).to_parquet(workspace.manifest)
    slices = [
        slice_of("few", 60.0, worse=True),
        slice_of("many", 50.0, worse=True),
        slice_of("some", 70.0, worse=False),
    ]
    intervals = {"reranked": {"low": {"rsum": 330.0}, "high": {"rsum": 350.0}}}
    reports = {"metrics": METRICS, "uncertainty": {"intervals": intervals}, "failures": {"slices": slices}}
    for name, content in reports.items():
        (workspace.reports / f"{name}.json").write_text(json.dumps(content))
    return workspace


def card(workspace: Workspace, **train: Any) -> str:
    return model_card(workspace, Params.model_validate({"train": train}), "diptych", "7", TAGS)


def test_it_says_how_the_version_is_used(workspace: Workspace) -> None:
    for command in ("diptych serve 7", "diptych promote 7", "diptych reproduce 7", 'load("models:/diptych/7")'):
        assert command in card(workspace)


def test_it_says_what_the_version_learned_from(workspace: Workspace) -> None:
    text = card(workspace)
    assert "Images by split: test 30, train 1,500." in text
    assert "`0123.dir`; commit `abcdef012345`" in text
    assert "Licences of the images: CC BY 4.0, CC0." in text


def test_it_has_figures_with_intervals_where_there_are_some(workspace: Workspace) -> None:
    text = card(workspace)
    assert "| towers | 340.0 | 40.0 | 40.0 |" in text
    assert "| re-ranked | 340.0 (330.0 to 350.0) | 40.0 | 40.0 |" in text


def test_without_a_trained_fusion_it_has_no_re_ranked_stage(workspace: Workspace) -> None:
    text = card(workspace, objectives={"itm": 0.0})
    assert "| query-bank normalization | 340.0 (330.0 to 350.0) | 40.0 | 40.0 |" in text
    assert "re-rank" not in text


def test_it_names_the_weak_points_with_the_worst_first(workspace: Workspace) -> None:
    weak = card(workspace).partition("## Weak points\n\n")[2].splitlines()
    assert weak == [
        "* text to image, words many: recall@10 50.0 (45.0 to 55.0)",
        "* text to image, words few: recall@10 60.0 (55.0 to 65.0)",
    ]


def test_without_dataset_and_reports_it_says_what_is_unknown(tmp_path: Path) -> None:
    text = card(Workspace(tmp_path))
    assert "Images by split: unknown." in text
    assert "Licences of the images: unknown, since the dataset is not here." in text
    assert "Weak points" not in text


def test_it_ends_with_the_gates_last_decision(workspace: Workspace) -> None:
    text = card(workspace)
    for passed, word in ((False, "rejected"), (True, "accepted")):
        checks = [Check("validation", passed, "as found")]
        decision = Decision("diptych", "7", None, "0123", "", "", checks, {"reranked": {"rsum": 1.0}})
        text = with_decision(text, decision)
        assert text.startswith(card(workspace) + "\n\n## Gate\n\ndiptych version 7: " + word)
        assert text.count("## Gate") == 1


def test_a_card_that_databases_would_refuse_is_shortened(workspace: Workspace) -> None:
    dataset = {"images": [], "annotations": [], "licenses": [{"id": i, "name": f"licence {i:04}"} for i in range(999)]}
    (workspace.data / "captions.json").write_text(json.dumps(dataset))
    assert len(card(workspace)) == 5000
    assert card(workspace).endswith(" …")
