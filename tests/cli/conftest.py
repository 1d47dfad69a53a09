"""Projects to call the command in."""

import shutil

import pytest


@pytest.fixture
def inside(project, monkeypatch):
    """The project, with it as the current folder."""
    monkeypatch.chdir(project.root)
    return project


@pytest.fixture
def empty(inside):
    """The project before it has data."""
    shutil.rmtree(inside.data)
    (inside.root / "data.dvc").unlink()
    return inside


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no server and no proxy."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
