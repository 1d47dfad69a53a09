"""Figures of a training that MLflow does not have yet: stored in the project until MLflow answers."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from diptych.files import write_json
from diptych.project.workspace import Workspace
from diptych.registry.address import location_key
from diptych.registry.errors import reason
from diptych.registry.figures import Figures

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def store_unsent(workspace: Workspace, uri: str, run_id: str, figures: Figures) -> None:
    """Store the figures of a training that has ended, for `send_unsent`.

    They belong to the run `run_id` of the MLflow at `uri`; the id is empty where no run could be made.
    """
    content = {"uri": location_key(workspace, uri), "run_id": run_id, **figures.to_json()}
    write_json(workspace.unsent / f"{time.time_ns()}.json", content)


def send_unsent(workspace: Workspace, uri: str, client: MlflowClient, experiment: str) -> None:
    """Send the stored figures of earlier trainings to the MLflow at `uri`, each to its run or to a new one.

    Figures that MLflow refuses stay for the next call, with a warning.
    """
    from mlflow.exceptions import MlflowException

    for path in sorted(workspace.unsent.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            figures, location, run_id = Figures.from_json(content), content["uri"], content["run_id"]
        except (ValueError, TypeError, KeyError) as error:
            log.warning("%s is damaged (%r), so MLflow lacks the figures of a training.", path, error)
            path.unlink()
            continue
        if location != location_key(workspace, uri):
            continue
        try:
            if not (run_id and is_active(client, run_id)):
                run_id = str(client.create_run(experiment, run_name="train").info.run_id)
                # After a kill or an error the next call must not make another run.
                write_json(path, {**content, "run_id": run_id})
            figures.send(client, run_id)
            path.unlink()
        except MlflowException as error:
            message = "MLflow does not take the figures of an earlier training (%s); to give them up, remove %s"
            log.warning(message, reason(error, uri), path)


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Return whether MLflow has the run, and not among the deleted ones."""
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
