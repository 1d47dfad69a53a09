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
