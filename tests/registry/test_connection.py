"""The connection to MLflow: one process at a time makes a store, and the project has its own experiment."""

from __future__ import annotations

import os

import mlflow
import pytest
from filelock import FileLock
from mlflow import MlflowClient

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.registry import connection
from diptych.registry.connection import connect, find_experiment, global_tracking_uri
from diptych.registry.errors import UnreachableError


def test_artifacts_lie_beside_the_workspaces_own_store(trained, client):
    experiment = client.get_experiment_by_name("diptych")

    assert experiment.artifact_location == (trained.local / "mlartifacts").as_uri()


def test_the_experiment_is_found_again(trained, client):
    assert connect(trained, Params())[1] == client.get_experiment_by_name("diptych").experiment_id


def test_an_experiment_that_is_not_there_yet_is_none(client):
    assert find_experiment(client, "another", client.tracking_uri) is None


def test_the_experiment_is_the_one_of_params_yaml(trained, client):
    params = Params.model_validate({"register": {"experiment": "another"}})

    assert connect(trained, params)[1] == find_experiment(client, "another", client.tracking_uri)


def test_a_deleted_experiment_is_told_with_the_command_that_restores_it(trained, client):
    number = client.get_experiment_by_name("diptych").experiment_id
    client.delete_experiment(number)

    with pytest.raises(
        DiptychError, match=rf"'diptych' is among the deleted .*mlflow experiments restore -x {number}`"
    ):
        connect(trained, Params())


def test_a_deleted_experiment_is_told_without_the_servers_password(trained, client):
    client.delete_experiment(client.get_experiment_by_name("diptych").experiment_id)

    with pytest.raises(DiptychError, match=r"MLFLOW_TRACKING_URI=http://mlflow\.example mlflow") as told:
        find_experiment(client, "diptych", "http://me:secret@mlflow.example")
    assert "secret" not in str(told.value)


def test_whoever_waits_too_long_for_the_tables_of_another_process_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "TABLES_TIMEOUT", 0.0)
    workspace = Workspace(tmp_path)
    workspace.local.mkdir()

    with (
        FileLock(workspace.local / "mlflow.lock"),
        pytest.raises(UnreachableError, match=r"Another process has been making MLflow's tables at sqlite:///.*wait"),
    ):
        connect(workspace, Params())
    assert not (workspace.local / "mlflow.db").exists()


def test_an_mlflow_that_does_not_answer_is_not_asked_for_its_experiment(tmp_path, monkeypatch):
    def refuse(uri: str) -> None:
        raise UnreachableError("no")

    monkeypatch.setattr(connection, "require_answer", refuse)
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda *_: pytest.fail("MLflow was asked"))
    with pytest.raises(UnreachableError, match="no"):
        connect(Workspace(tmp_path), Params())


@pytest.mark.parametrize("before", [None, "http://mine"])
def test_the_global_address_is_that_of_the_block_and_then_as_before(monkeypatch, before):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)

    with pytest.raises(ValueError, match="it failed"), global_tracking_uri("http://theirs"):
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == ("http://theirs", "http://theirs")
        raise ValueError("it failed")

    assert (os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_REGISTRY_URI")) == (before, before)
    assert before is None or (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (before, before)
