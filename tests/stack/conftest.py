"""A project that has been trained and evaluated, without an MLflow store of its own."""

from pathlib import Path

import pytest
from tiny_model import write_reports, write_tiny_model

from diptych.project.workspace import Workspace


@pytest.fixture
def trained(tmp_path: Path) -> Workspace:
    """Outside of git."""
    workspace = Workspace(tmp_path / "trained")
    write_tiny_model(workspace.model)
    write_reports(workspace.reports)
    workspace.params.write_text("seed: 0\n")
    (workspace.root / "dvc.lock").write_text("schema: '2.0'\n")
    return workspace
