"""A project that was moved: its registry goes with it."""

import shutil
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock
from mlflow import MlflowClient

from diptych.config import Params
from diptych.project.processes import HOLDER
from diptych.project.workspace import Workspace
from diptych.registry.connection import connect


@pytest.fixture
def logged(tmp_path: Path, mlflow_store: Path) -> tuple[Workspace, str]:
    """A project with a run that has an artifact, and the run's id."""
    workspace = Workspace(tmp_path / "jürgen")
    workspace.local.mkdir(parents=True)
    shutil.copy(mlflow_store, workspace.local / "mlflow.db")
    client, experiment = connect(workspace, Params())
    run_id = client.create_run(experiment).info.run_id
    client.log_text(run_id, "before", "note.txt")
    return workspace, run_id


def note(workspace: Workspace, run_id: str) -> str:
    client, _ = connect(workspace, Params())
    uri = f"{client.get_run(run_id).info.artifact_uri}/note.txt"
    return mlflow.artifacts.load_text(uri)


def test_what_was_logged_is_found_where_the_project_is_now(logged, tmp_path):
    workspace, run_id = logged
    moved = Workspace(workspace.root.rename(tmp_path / "Mein Projekt"))

    assert note(moved, run_id) == "before"
    assert not workspace.root.exists()


@pytest.mark.parametrize(("before", "after"), [("a", "a/b"), ("a/b", "a")])
def test_one_path_may_lie_within_the_other(tmp_path, mlflow_store, before, after):
    workspace = Workspace(tmp_path / before)
    (workspace.local / "mlartifacts").mkdir(parents=True)
    shutil.copy(mlflow_store, workspace.local / "mlflow.db")
    client, experiment = connect(workspace, Params())
    run_id = client.create_run(experiment).info.run_id
    client.log_text(run_id, "before", "note.txt")
    workspace.local.rename(tmp_path / "apart")
    moved = Workspace(tmp_path / after)
    moved.root.mkdir(exist_ok=True)
    (tmp_path / "apart").rename(moved.local)

    assert note(moved, run_id) == note(moved, run_id) == "before"


def test_nothing_is_written_outside_of_a_moved_project(logged, tmp_path):
    moved = Workspace(logged[0].root.rename(tmp_path / "moved"))

    client, experiment = connect(moved, Params())
    run_id = client.create_run(experiment).info.run_id
    client.log_text(run_id, "after", "note.txt")

    assert note(moved, run_id) == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_a_copy_and_its_original_go_separate_ways(logged, tmp_path):
    workspace, run_id = logged
    copy = Workspace(shutil.copytree(workspace.root, tmp_path / "copy"))
    client, experiment = connect(copy, Params())
    client.log_text(client.create_run(experiment).info.run_id, "after", "note.txt")

    assert note(workspace, run_id) == note(copy, run_id) == "before"
    assert len(list((workspace.local / "mlartifacts").iterdir())) == 1


def test_what_was_written_to_the_former_path_is_fetched(logged, tmp_path):
    workspace, run_id = logged
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))
    left = workspace.local / "mlartifacts"
    shutil.move(moved.local / "mlartifacts", left)

    assert note(moved, run_id) == "before"
    assert (left / run_id).is_dir()


def test_while_another_process_works_on_it_under_another_path_addresses_stay(logged, tmp_path):
    workspace, run_id = logged
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))

    with FileLock(moved.local / "lock"):
        client, _ = connect(moved, Params())
        assert "j%C3%BCrgen" in client.get_run(run_id).info.artifact_uri


def test_a_run_of_another_project_respects_the_lock_and_a_run_of_this_one_has_it(logged, tmp_path, monkeypatch):
    workspace, run_id = logged
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))

    with FileLock(moved.local / "lock"):
        monkeypatch.setenv(HOLDER, f"1:{tmp_path / 'other'}")
        client, _ = connect(moved, Params())
        assert "j%C3%BCrgen" in client.get_run(run_id).info.artifact_uri

        monkeypatch.setenv(HOLDER, f"1:{moved.root}")
        assert note(moved, run_id) == "before"


def test_an_experiment_that_mlflow_made_elsewhere_keeps_what_comes_next_in_the_project(logged, tmp_path):
    workspace, _ = logged
    client = MlflowClient(f"sqlite:///{workspace.local}/mlflow.db")
    client.create_experiment("theirs", artifact_location=str(tmp_path / "elsewhere" / "mlruns" / "7"))

    client, experiment = connect(workspace, Params.model_validate({"register": {"experiment": "theirs"}}))

    assert client.get_experiment(experiment).artifact_location == (workspace.local / "mlartifacts").as_uri()


@pytest.mark.parametrize("chosen", ["s3://bucket/runs", "file:///srv/artifacts"])
def test_an_experiment_for_which_somebody_chose_a_place_keeps_it(logged, chosen):
    workspace, _ = logged
    client = MlflowClient(f"sqlite:///{workspace.local}/mlflow.db")
    client.create_experiment("theirs", artifact_location=chosen)

    client, experiment = connect(workspace, Params.model_validate({"register": {"experiment": "theirs"}}))

    assert client.get_experiment(experiment).artifact_location == chosen


def test_a_registry_behind_a_link_follows_too(logged, tmp_path):
    workspace, run_id = logged
    (tmp_path / "big").mkdir()
    workspace.local.rename(tmp_path / "big" / "store")
    workspace.local.symlink_to(tmp_path / "big" / "store")
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))

    assert note(moved, run_id) == "before"

    (tmp_path / "big" / "store").rename(tmp_path / "big" / "other")
    moved.local.unlink()
    moved.local.symlink_to(tmp_path / "big" / "other")
    client, experiment = connect(moved, Params())
    client.log_text(client.create_run(experiment).info.run_id, "after", "note.txt")

    assert note(moved, run_id) == "before"
    assert not workspace.root.exists()
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["other"]


def test_what_cannot_be_fetched_from_the_former_path_is_told_and_stops_nothing(logged, tmp_path, monkeypatch, caplog):
    workspace, run_id = logged
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))
    left = workspace.local / "mlartifacts"
    shutil.move(moved.local / "mlartifacts", left)

    def refuse(*args, **kwargs):
        raise shutil.Error([("a", "b", "[Errno 13] Permission denied")])

    monkeypatch.setattr(shutil, "copytree", refuse)
    connect(moved, Params())

    assert f"{left / run_id / 'artifacts'} cannot be fetched" in caplog.text
    assert "Permission denied" in caplog.text
