"""Figures that MLflow did not take are kept, and sent when it answers."""

import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.registry.address import tracking_uri
from diptych.registry.connection import connect
from diptych.registry.figures import Figures, Measurement
from diptych.registry.unsent import send_unsent, store_unsent

LOSSES = [Measurement("loss", 2.0, 1000, 1), Measurement("loss", math.nan, 2000, 2)]


@pytest.fixture
def uri(trained: Workspace) -> str:
    return tracking_uri(trained, Params())


def figures() -> Figures:
    return Figures({"seed": "0"}, list(LOSSES), {"weights_sha256": "abc"}, "FINISHED")


def send(workspace: Workspace, uri: str) -> list[Run]:
    client, experiment = connect(workspace, Params())
    send_unsent(workspace, uri, client, experiment)
    return client.search_runs([experiment])


def kept(workspace: Workspace) -> list[Path]:
    return list((workspace.local / "unsent").glob("*"))


def test_kept_figures_become_a_run_and_are_sent_once(trained, client, uri):
    store_unsent(trained, uri, "", figures())

    (run,) = send(trained, uri)
    assert (run.data.params, run.data.tags["weights_sha256"], run.info.status) == ({"seed": "0"}, "abc", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.timestamp) for one in history] == [(1, 1000), (2, 2000)]
    assert math.isnan(history[1].value)
    assert kept(trained) == []
    assert len(send(trained, uri)) == 1


def test_kept_figures_go_to_the_run_that_was_begun(trained, client, uri):
    run_id = client.create_run(client.get_experiment_by_name("diptych").experiment_id).info.run_id
    store_unsent(trained, uri, run_id, figures())

    (run,) = send(trained, uri)
    assert run.info.run_id == run_id
    assert run.data.tags["weights_sha256"] == "abc"


def test_figures_for_another_mlflow_wait_for_that_one(trained, uri):
    store_unsent(trained, "http://elsewhere", "", figures())

    assert send(trained, uri) == []
    assert len(kept(trained)) == 1


def test_no_password_is_kept_with_figures(trained):
    store_unsent(trained, "postgresql://me:secret@host/mlflow", "", figures())

    assert "secret" not in kept(trained)[0].read_text()


def test_figures_that_mlflow_refuses_keep_nothing_else_from_being_sent(trained, uri, caplog):
    store_unsent(trained, uri, "", Figures({"no\nname": "0"}, [], {}, "FINISHED"))
    store_unsent(trained, uri, "", figures())

    assert "abc" in [run.data.tags.get("weights_sha256") for run in send(trained, uri)]
    assert len(kept(trained)) == 1
    assert "to give them up, remove" in caplog.text


def test_a_damaged_file_of_figures_is_told_and_left_behind(trained, uri, caplog):
    store_unsent(trained, uri, "", figures())
    kept(trained)[0].write_text('{"uri": 1')

    assert send(trained, uri) == []
    assert kept(trained) == []
    assert "is damaged" in caplog.text


def test_one_that_is_killed_while_sending_leaves_one_run(trained, uri, monkeypatch):
    store_unsent(trained, uri, "", figures())

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_tag", die)
        with pytest.raises(KeyboardInterrupt):
            send(trained, uri)

    (run,) = send(trained, uri)
    assert run.data.tags["weights_sha256"] == "abc"
    assert kept(trained) == []


def test_figures_that_mlflow_refuses_make_no_run_each_time(trained, uri):
    store_unsent(trained, uri, "", Figures({"no\nname": "0"}, [], {}, "FINISHED"))

    assert len(send(trained, uri)) == len(send(trained, uri)) == 1


def test_kept_figures_go_with_a_project_that_moves(trained, uri, tmp_path):
    store_unsent(trained, uri, "", figures())
    moved = Workspace(trained.root.rename(tmp_path / "moved"))

    assert len(send(moved, tracking_uri(moved, Params()))) == 1
