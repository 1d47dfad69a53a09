"""The connection to MLflow, and the experiment of the project."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.addresses import without_secret
from diptych.project.workspace import Workspace
from diptych.registry.address import artifact_folder, is_inside, store_file, tracking_uri
from diptych.registry.answering import require_answer
from diptych.registry.errors import UnreachableError
from diptych.registry.relocation import follow_project

if TYPE_CHECKING:
    from mlflow import MlflowClient

TABLES_TIMEOUT = 180.0
"""Seconds that another process may take to make the tables of a fresh store."""

for _noisy in ("mlflow", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)
# It warns of a missing pip, which an environment made by uv does not have.
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)


def connect(workspace: Workspace, params: Params) -> tuple[MlflowClient, str]:
    """Return a client, and the id of the experiment, which is created where it is missing.

    Two processes that create the tables of a fresh store at once ruin it, so they take turns.

    Raises:
        UnreachableError: MLflow does not answer.
        DiptychError: its address is of no use, its store is damaged, or the experiment was deleted.
    """
    from mlflow import MlflowClient

    uri = tracking_uri(workspace, params)
    workspace.local.mkdir(exist_ok=True)
    try:
        with FileLock(workspace.local / "mlflow.lock", timeout=TABLES_TIMEOUT):
            require_answer(uri)
            store = store_file(uri)
            if store is not None and store.exists() and is_inside(workspace, store):
                follow_project(workspace, store)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            name, folder = params.register_.experiment, artifact_folder(workspace, uri)
            location = folder.as_uri() if folder else None
            experiment = find_experiment(client, name, uri)
            return client, experiment or str(client.create_experiment(name, artifact_location=location))
    except Timeout:
        raise UnreachableError(
            f"Another process has been making MLflow's tables at {without_secret(uri)} for {TABLES_TIMEOUT:g} s: "
            "wait for it, or end it, then run again."
        ) from None


def find_experiment(client: MlflowClient, name: str, uri: str) -> str | None:
    """Return the id of the experiment; None where there is none yet.

    Raises:
        DiptychError: it was deleted, so that nothing can be logged to it until it is restored.
    """
    from mlflow.entities import LifecycleStage

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    number = str(experiment.experiment_id)
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        command = f"MLFLOW_TRACKING_URI={shlex.quote(without_secret(uri))} mlflow experiments restore -x {number}"
        raise DiptychError(
            f"The experiment {name!r} is among the deleted ones of MLflow at {without_secret(uri)}. Restore it with "
            f"`{command}`, or name another by register.experiment in params.yaml."
        )
    return number


@contextmanager
def global_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global address for the block, and restore the environment afterwards.

    MLflow's functions on logged models take no other address, and setting it would change the environment for good.
    """
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
