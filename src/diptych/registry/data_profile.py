"""The profile of the data that a model was trained on, stored with its MLflow run for the drift check."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.config import Params
from diptych.data.accepted import read_accepted
from diptych.drift.profile import Profile, make_profile
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT = "drift/profile.json"
"""Path of the profile among the artifacts of a run."""

log = logging.getLogger(__name__)


def log_profile(client: MlflowClient, run_id: str, workspace: Workspace, params: Params) -> None:
    """Add the profile of the accepted pairs to the run, embedded by the trained model; warn where that fails."""
    try:
        accepted = read_accepted(workspace.data, workspace.manifest, workspace.captions)
        client.log_dict(run_id, make_profile(accepted, params, model=workspace.model).to_json(), ARTIFACT)
    except DiptychError as error:
        log.warning("Drift from the data of this model cannot be measured later: %s", error)


def load_profile(client: MlflowClient, run_id: str) -> Profile | None:
    """Return the profile stored with an MLflow run; None where there is none, or it cannot be read."""
    folder = ARTIFACT.rpartition("/")[0]
    if not run_id or ARTIFACT not in {artifact.path for artifact in client.list_artifacts(run_id, folder)}:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(client.download_artifacts(run_id, ARTIFACT, temporary))
        try:
            return Profile.from_json(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            log.warning("%s of run %s cannot be read: %s", ARTIFACT, run_id, error)
            return None
