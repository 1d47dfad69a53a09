"""What a run says at its end."""

import sys
from pathlib import Path
from typing import Any

from diptych.cli.summary import render
from diptych.project.workspace import Workspace

RECALLS = {"recall@1": 12.34, "recall@5": 20.0, "recall@10": 30.0, "median_rank": 4.0}
SUMMARY: dict[str, Any] = {
    "data": "present",
    "inbox": ["drop may brings 3 images and 6 captions"],
    "why": ["There are 3.0 % more images."],
    "stages": {"validate": "reused", "preprocess": "reused", "train": "ran", "evaluate": "ran"},
    "metrics": {
        "towers": {"i2t": RECALLS, "t2i": RECALLS, "rsum": 120.04},
        "reranked": {"i2t": RECALLS, "t2i": RECALLS, "rsum": 130.0},
    },
    "version": {"name": "diptych", "version": "3", "created": True},
    "decision": {"outcome": "not asked", "why": "", "champion": "2"},
    "tracking_uri": "sqlite:////w s/mlflow.db",
}


def test_it_tells_what_ran_what_was_reused_and_how_well_the_model_does(tmp_path):
    text = render(SUMMARY, Workspace(tmp_path))

    assert "ran        train, evaluate" in text
    assert "reused     validate, preprocess" in text
    assert "towers     RSUM 120.0, recall@1 i2t 12.3, t2i 12.3" in text
    assert "re-ranked  RSUM 130.0" in text
    assert "inbox      drop may brings 3 images and 6 captions" in text
    assert "why        There are 3.0 % more images." in text
    assert "version    diptych 3 (challenger), new" in text


def test_it_tells_which_version_is_the_champion_and_what_became_of_the_new_one(tmp_path):
    def said(**decision):
        text = render({**SUMMARY, "decision": {"champion": None, "why": "", **decision}}, Workspace(tmp_path))
        return next(line for line in text.splitlines() if line.startswith("champion"))[11:]

    assert said(outcome="not asked", champion="2") == "version 2"
    assert said(outcome="not asked") == "none yet: `diptych promote`"
    assert said(outcome="promoted", champion="3", why="RSUM +2.0") == "version 3, promoted: RSUM +2.0"
    assert said(outcome="rejected", champion="2", why="worse") == "version 2; the new one does not become it: worse"
    assert said(outcome="accepted", champion="2").endswith("the new one may become it: `diptych promote`")


def test_it_tells_when_nothing_ran(tmp_path):
    stages = dict.fromkeys(SUMMARY["stages"], "reused")
    version = {**SUMMARY["version"], "created": False}

    text = render({**SUMMARY, "stages": stages, "version": version}, Workspace(tmp_path))

    assert "ran        nothing" in text
    assert "diptych 3 (challenger), known already" in text


def test_a_run_that_did_not_train_says_how_to_train_all_the_same(tmp_path):
    stages = {**dict.fromkeys(SUMMARY["stages"], "not needed"), "validate": "ran"}
    summary = {name: SUMMARY[name] for name in ("data", "inbox")} | {"stages": stages, "why": ["Too few."]}

    text = render(summary, Workspace(tmp_path))

    assert "why        Too few." in text
    assert text.endswith("next       `diptych run --force` trains all the same")


def test_its_commands_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))

    text = render(SUMMARY, Workspace(Path.cwd()))

    assert ".venv/bin/mlflow ui --backend-store-uri 'sqlite:////w s/mlflow.db'" in text
    assert "xdg-open reports/report.html" in text


def test_a_server_has_its_own_page_and_its_password_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")

    text = render({**SUMMARY, "tracking_uri": "https://me:secret@mlflow.example"}, Workspace(tmp_path))

    assert "MLflow     https://mlflow.example" in text
    assert "secret" not in text
    assert "report     open " in text
