"""The question whether a run has anything to do, and the note that answers it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from dropping import photos, write_drop
from tiny_model import write_reports, write_tiny_model
from versions import without_package_checks

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.inbox.drops import Drop
from diptych.inbox.idle import find_idle_summary, forget, note_idle
from diptych.inbox.ledger import DropResult, record_result
from diptych.project import dvc
from diptych.project.changing import begin
from diptych.project.recording import publish_run
from diptych.project.workspace import Workspace
from diptych.registry import promotion as registry_promotion
from diptych.registry.figures import Figures
from diptych.registry.history import Event, record
from diptych.registry.register import register
from diptych.registry.registered_model import CHAMPION, RegisteredModel
from diptych.registry.unsent import store_unsent

PARAMS = Params()


@pytest.fixture(scope="module")
def _done(_project: Path, mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("done") / "project"
    workspace = Workspace(shutil.copytree(_project, root))
    write_tiny_model(workspace.model)
    write_reports(workspace.reports)
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    for folder in ("flows", "inbox", ".diptych"):
        (root / folder).mkdir()
    (root / "flows" / "retrain.py").write_text("retrain = None\n")
    shutil.copy(mlflow_store, workspace.local / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        without_package_checks(patch)
        register(workspace, PARAMS)
    publish_run(workspace, PARAMS, print)
    return root


@pytest.fixture
def done(_done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project in which a run has just ended, with its note; DVC, which takes a second to ask, finds no change."""
    monkeypatch.setattr(dvc, "status", lambda workspace: {})
    workspace = Workspace(shutil.copytree(_done, tmp_path / "project"))
    # The registry follows its project, as at the beginning of a run in a copy.
    register(workspace, PARAMS)
    note_idle(workspace, PARAMS, forget(workspace))
    return workspace


def is_idle(workspace: Workspace, promotion: str = "never", inbox: str | None = None) -> bool:
    return find_idle_summary(workspace, PARAMS, promotion, inbox) is not None


def registered(workspace: Workspace) -> RegisteredModel:
    return RegisteredModel.of(workspace, PARAMS)


def test_where_nothing_has_changed_the_summary_is_that_of_a_run_that_reused_everything(done):
    summary: dict[str, Any] = find_idle_summary(done, PARAMS, "never", None) or {}

    assert set(summary["stages"].values()) == {"reused"}
    assert summary["why"] == ["Nothing has changed."]
    assert summary["metrics"]["reranked"]["rsum"] == 130.0
    assert (summary["version"]["version"], summary["version"]["created"]) == ("1", False)
    assert summary["decision"] == {"outcome": "not asked", "why": "", "champion": None}


def append(name: str):
    def change(workspace: Workspace) -> None:
        with (workspace.root / name).open("a") as file:
            file.write("\n")

    return change


def refuse_a_drop(workspace: Workspace) -> None:
    record_result(workspace, Drop("may", "1" * 64, "may"), DropResult("may", "refused", "all bad"))


def kill_dvc(workspace: Workspace) -> None:
    users = workspace.root / ".dvc" / "tmp" / "rwlock"
    users.parent.mkdir(exist_ok=True)
    users.write_text('{"write": {"data": {"pid": 999999999, "cmd": "dvc repro"}}}')


CHANGES = {
    "the parameters, also those of no stage": append("params.yaml"),
    "the dataset version": append("data.dvc"),
    "the results": append("dvc.lock"),
    "the flow": append("flows/retrain.py"),
    "a DVC remote": append(".dvc/config"),
    "the alias champion": lambda workspace: registered(workspace).set_alias(CHAMPION, "1"),
    "the alias challenger": lambda workspace: registered(workspace).remove_alias("challenger"),
    "no registry": lambda workspace: (workspace.local / "mlflow.db").unlink(),
    "figures that MLflow lacks": lambda workspace: store_unsent(workspace, "x", "", Figures()),
    "a refused drop that the history lacks": refuse_a_drop,
    "an interrupted change of the dataset": begin,
    "a killed DVC": kill_dvc,
    "a link that leads nowhere": lambda workspace: (workspace.reports / "plots").symlink_to("nowhere"),
    "a damaged note": lambda workspace: (workspace.local / "idle.json").write_text('{"state": '),
    "no note": forget,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_run_would_act_on_is_noticed(done, change):
    assert is_idle(done)

    CHANGES[change](done)

    assert not is_idle(done)


def test_a_new_drop_is_noticed_and_what_is_none_is_reported(done, caplog):
    caplog.set_level("INFO", "diptych")
    (done.root / "inbox" / "table.csv").touch()
    assert is_idle(done, inbox="inbox")
    assert "table.csv lies in the inbox itself and is left alone" in caplog.text

    write_drop(done.root / "inbox" / "monday", photos(1))

    assert not is_idle(done, inbox="inbox")
    assert is_idle(done)


def test_an_inbox_that_cannot_be_read_is_for_the_run_to_report(done):
    assert not is_idle(done, inbox="nowhere")


def test_what_dvc_would_run_again_is_noticed(done, monkeypatch):
    monkeypatch.setattr(dvc, "status", lambda workspace: {"train": [{"changed outs": {"artifacts/model": "deleted"}}]})
    assert not is_idle(done)

    def fail(workspace: Workspace) -> None:
        raise DiptychError("dvc.lock is no lock file")

    monkeypatch.setattr(dvc, "status", fail)
    assert not is_idle(done)


def test_another_registry_is_noticed(done, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert not is_idle(done)


def test_a_copy_of_a_project_and_a_moved_one_are_asked_anew(done, tmp_path):
    assert not is_idle(Workspace(shutil.copytree(done.root, tmp_path / "copy")))

    assert not is_idle(Workspace(done.root.rename(tmp_path / "moved")))


def test_a_version_that_the_gate_has_not_decided_on_is_something_to_do_for_a_run_that_promotes(done):
    assert [is_idle(done, way) for way in ("never", "manual", "auto")] == [True, False, False]

    record(registered(done), Event("rejected", None, "1", "worse"))
    note_idle(done, PARAMS, forget(done))

    assert [is_idle(done, way) for way in ("never", "manual", "auto")] == [True, True, True]


def test_nothing_is_noted_where_the_last_steps_still_change_something(done, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registry_promotion, "repair", lambda model: model.set_alias("other", "1"))
        note_idle(done, PARAMS, forget(done))
    assert not is_idle(done)

    note_idle(done, PARAMS, forget(done))

    assert is_idle(done)


def test_nothing_is_noted_where_the_code_has_changed_during_the_run(done):
    forget(done)
    note_idle(done, PARAMS, "digest of other code")

    assert not is_idle(done)


@pytest.mark.parametrize("summary", [{}, [], None, "x"])
def test_a_note_without_a_whole_summary_is_as_good_as_none(done, summary):
    path = done.local / "idle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"summary": summary}))

    assert not is_idle(done)


def test_nothing_is_noted_of_a_server_which_may_change_unseen(done, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    note_idle(done, PARAMS, forget(done))

    assert not is_idle(done)
    assert not (done.local / "idle.json").exists()
