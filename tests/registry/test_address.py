"""Which MLflow is meant, the same from every folder."""

import pytest

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.registry.address import artifact_folder, store_file, tracking_uri


def named(uri: str) -> Params:
    return Params.model_validate({"register": {"tracking_uri": uri}})


def test_the_environment_goes_before_params_and_those_before_the_projects_own_store(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)

    assert tracking_uri(workspace, Params()) == f"sqlite:///{tmp_path}/.diptych/mlflow.db"
    assert tracking_uri(workspace, named("http://params")) == "http://params"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(workspace, named("http://params")) == "http://environment"


@pytest.mark.parametrize("uri", ["sqlite:///tracking.db", "sqlite:///./tracking.db", "sqlite:///docs/../tracking.db"])
def test_a_relative_file_is_the_projects_from_every_folder(tmp_path, monkeypatch, uri):
    elsewhere = tmp_path / "project" / "docs"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    workspace = Workspace(tmp_path / "project")

    assert tracking_uri(workspace, named(uri)) == f"sqlite:///{tmp_path}/project/tracking.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri(workspace, Params()) == f"sqlite:///{tmp_path}/project/tracking.db"


@pytest.mark.parametrize(
    "uri",
    ["http://host:5000", "postgresql://host/mlflow", "databricks", "sqlite:////srv/mlflow.db", "sqlite:////a/b.db?x=1"],
)
def test_an_absolute_address_stays_as_it_is(tmp_path, uri):
    assert tracking_uri(Workspace(tmp_path), named(uri)) == uri


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x.db?mode=memory&uri=true"])
def test_a_store_in_memory_is_refused(tmp_path, uri):
    with pytest.raises(DiptychError, match=r"register\.tracking_uri is .*names no file that stays"):
        tracking_uri(Workspace(tmp_path), named(uri))


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/srv/mlruns", "file:///srv/mlruns", "file:mlruns"])
def test_a_folder_of_runs_is_refused_with_what_to_do(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(DiptychError, match=r"MLFLOW_TRACKING_URI is .*a folder.*mlflow migrate-filestore"):
        tracking_uri(Workspace(tmp_path), Params())


@pytest.mark.parametrize("folder", ["jürgen", "Mein Projekt", "50% off", "a#b", "it's"])
def test_the_file_of_a_store_is_found_under_any_path(tmp_path, folder):
    workspace = Workspace(tmp_path / folder)

    assert store_file(tracking_uri(workspace, Params())) == tmp_path / folder / ".diptych" / "mlflow.db"


def test_a_path_that_an_address_cannot_hold_is_refused(tmp_path):
    with pytest.raises(DiptychError, match="holds a question mark"):
        tracking_uri(Workspace(tmp_path / "why?"), Params())


def test_artifacts_lie_in_the_project_or_beside_a_store_that_others_may_share(tmp_path):
    workspace = Workspace(tmp_path / "project")

    assert artifact_folder(workspace, f"sqlite:///{tmp_path}/project/x.db") == workspace.local / "mlartifacts"
    assert artifact_folder(workspace, f"sqlite:///{tmp_path}/shared/x.db") == tmp_path / "shared" / "mlartifacts"
    assert artifact_folder(workspace, "http://host") is None


def test_an_empty_variable_names_no_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    assert tracking_uri(Workspace(tmp_path), Params()) == f"sqlite:///{tmp_path}/.diptych/mlflow.db"
