"""What a run says at its end."""

import sys
from pathlib import Path

from diptych.summary import render
from diptych.workspace import Workspace

WAY = {"recall@1": 12.34, "recall@5": 20.0, "recall@10": 30.0, "median_rank": 4.0}
SUMMARY = {
    "data": "present",
    "stages": {"validate": "reused", "preprocess": "reused", "train": "ran", "evaluate": "ran"},
    "metrics": {
        "towers": {"i2t": WAY, "t2i": WAY, "rsum": 120.04},
        "reranked": {"i2t": WAY, "t2i": WAY, "rsum": 130.0},
    },
    "version": {"name": "diptych", "version": "3", "created": True},
    "tracking_uri": "sqlite:////w s/mlflow.db",
}


def test_it_tells_what_ran_what_was_reused_and_how_well_the_model_does(tmp_path):
    text = render(SUMMARY, Workspace(tmp_path))

    assert "ran        train, evaluate" in text
    assert "reused     validate, preprocess" in text
    assert "towers     RSUM 120.0, recall@1 12.3 / 12.3" in text
    assert "re-ranked  RSUM 130.0" in text
    assert "version    diptych 3 (challenger), new" in text


def test_it_tells_when_nothing_ran(tmp_path):
    stages = dict.fromkeys(SUMMARY["stages"], "reused")
    version = {**SUMMARY["version"], "created": False}

    text = render({**SUMMARY, "stages": stages, "version": version}, Workspace(tmp_path))

    assert "nothing has changed" in text
    assert "diptych 3 (challenger), known already" in text


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
