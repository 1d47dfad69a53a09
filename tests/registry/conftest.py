"""A project that has been trained and evaluated, and a registered model without any."""

import shutil
from pathlib import Path

import pytest
from tiny_model import write_reports, write_tiny_model
from versions import make_version, open_copy, open_registry, without_package_checks

from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.registry.connection import connect
from diptych.registry.registered_model import RegisteredModel


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = Workspace(tmp_path_factory.mktemp("trained"))
    write_tiny_model(workspace.model)
    write_reports(workspace.reports)
    workspace.params.write_text("seed: 0\n")
    (workspace.root / "dvc.lock").write_text("schema: '2.0'\n")
    return workspace.root


@pytest.fixture
def unchecked_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    without_package_checks(monkeypatch)


@pytest.fixture
def trained(_trained: Path, mlflow_store: Path, tmp_path: Path, unchecked_packages: None) -> Workspace:
    """Outside of git; with a fresh store of its own."""
    workspace = Workspace(shutil.copytree(_trained, tmp_path / "trained"))
    workspace.local.mkdir()
    shutil.copy(mlflow_store, workspace.local / "mlflow.db")
    return workspace


@pytest.fixture
def client(trained: Workspace):
    """Of the trained project's store."""
    return connect(trained, Params())[0]


@pytest.fixture
def model(mlflow_store: Path, tmp_path: Path) -> RegisteredModel:
    """Registered, without versions; in the store of the project tmp_path/project."""
    return open_registry(Workspace(tmp_path / "project"), mlflow_store)


@pytest.fixture(scope="session")
def _four(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, elsewhere = tmp_path_factory.mktemp("four"), tmp_path_factory.mktemp("packages")
    model = open_registry(Workspace(root), mlflow_store)
    for _ in range(4):
        # Not in the project: what lies there follows a project that is copied.
        make_version(model, elsewhere)
    return root / ".diptych" / "mlflow.db"


@pytest.fixture
def four(_four: Path, tmp_path: Path) -> RegisteredModel:
    """With four versions, whose packages belong to all tests: look only."""
    return open_copy(Workspace(tmp_path / "project"), _four)
