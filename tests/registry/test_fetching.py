"""A retriever is loaded from a registered model, in a project and elsewhere."""

import shutil
import time
from pathlib import Path

import pytest
from tiny_model import write_tiny_model
from versions import open_registry, register_package

from diptych import Retriever
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace


@pytest.fixture
def project(mlflow_store: Path, tmp_path: Path) -> Workspace:
    """A project whose champion is a model without a training."""
    workspace = Workspace(tmp_path / "project")
    model = open_registry(workspace, mlflow_store)
    (workspace.root / "dvc.yaml").touch()
    shutil.copy(Path(__file__).parents[2] / "params.yaml", workspace.params)
    write_tiny_model(tmp_path / "packages" / "1" / "artifacts" / "model")
    register_package(model, tmp_path / "packages" / "1", alias="champion")
    return workspace


@pytest.mark.parametrize("address", ["models:/diptych@champion", "models:/diptych/1"])
def test_a_registered_model_is_loaded_in_its_project(
    project: Workspace, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    assert len(Retriever.load(address, "cpu").encode_texts(["a red square"])) == 1


def test_elsewhere_the_environment_names_the_mlflow(
    project: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(DiptychError, match="MLFLOW_TRACKING_URI names the MLflow with the model"):
        Retriever.load("models:/diptych@champion")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.local}/mlflow.db")

    assert len(Retriever.load("models:/diptych@champion", "cpu").encode_texts(["a red square"])) == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://ada:secret@127.0.0.1:9", "MLflow at http://127.0.0.1:9 does not answer"),
        ("nonsense://host", "MLflow at nonsense://host says"),
    ],
)
def test_elsewhere_an_mlflow_that_does_not_answer_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    # Outside of a project nothing sets the number of retries: MLflow's own are minutes.
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    started = time.monotonic()

    with pytest.raises(DiptychError, match=message):
        Retriever.load("models:/diptych@champion", "cpu")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/diptych@nobody", "has no 'nobody'"),
        ("models:/diptych", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/it's mine@champion", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_an_address_of_nothing_is_an_error(
    project: Workspace, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.chdir(project.root)
    with pytest.raises(DiptychError, match=message):
        Retriever.load(address, "cpu")
