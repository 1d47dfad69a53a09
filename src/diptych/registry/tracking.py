"""The connection to MLflow, and a training's run in it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.files import write_json
from diptych.project.addresses import without_secret
from diptych.project.provenance import provenance
from diptych.project.workspace import Workspace
from diptych.registry.address import artifact_folder, is_inside, place, store_file, tracking_uri
from diptych.registry.answering import UnreachableError, reason, require_answer
from diptych.registry.relocation import follow_project
from diptych.registry.unsent import Figures, is_active, keep

FLUSH_EVERY = 5.0
"""Seconds in which figures are gathered before they are sent: a call costs more than what it carries."""
RETRY_AFTER = 60.0
"""Seconds between two attempts to reach an MLflow that does not answer."""
PATIENCE_FOR_TABLES = 180.0
"""Seconds that another process may take to make the tables of a fresh store."""

log = logging.getLogger(__name__)
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
    uri = tracking_uri(workspace, params)
    workspace.local.mkdir(exist_ok=True)
    try:
        with FileLock(workspace.local / "mlflow.lock", timeout=PATIENCE_FOR_TABLES):
            require_answer(uri)
            store = store_file(uri)
            if store is not None and store.exists() and is_inside(workspace, store):
                follow_project(workspace, store)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            return client, _experiment(client, workspace, params)
    except Timeout:
        raise UnreachableError(
            f"Another process has been making MLflow's tables at {without_secret(uri)} for {PATIENCE_FOR_TABLES:g} s: "
            "wait for it, or end it, then run again."
        ) from None


def find_experiment(client: MlflowClient, name: str, uri: str) -> str | None:
    """Return the id of the experiment; None where there is none yet.

    Raises:
        DiptychError: it was deleted, so that nothing can be logged to it until it is restored.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return None
    number = str(found.experiment_id)
    if found.lifecycle_stage == LifecycleStage.DELETED:
        command = f"MLFLOW_TRACKING_URI={shlex.quote(without_secret(uri))} mlflow experiments restore -x {number}"
        raise DiptychError(
            f"The experiment {name!r} is among the deleted ones of MLflow at {without_secret(uri)}. Restore it with "
            f"`{command}`, or name another by register.experiment in params.yaml."
        )
    return number


@contextmanager
def addressed(uri: str) -> Iterator[None]:
    """MLflow's logged models know only a global address, which stays in the environment; here it is undone."""
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


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as `section.key` to text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def metric_name(name: str) -> str:
    """MLflow refuses the @ of recall@1."""
    return name.replace("@", "_at_")


class TrackedRun:
    """A training's run in MLflow. What MLflow does, or fails to do, never stops the training.

    Figures that cannot be sent wait for the next attempt. A training that was killed finds them, and its run, again by
    a note in the workspace, if neither parameters nor data have changed since.

        with TrackedRun(workspace, params) as run:
            run.log_params(...)
            run.log_metrics(..., step)
            run.finish(tags)
    """

    def __init__(self, workspace: Workspace, params: Params) -> None:
        self._workspace = workspace
        self._settings = params
        self._note = workspace.local / "training-run.json"
        self._uri = tracking_uri(workspace, params)
        self._client: MlflowClient | None = None
        self._run_id = self._other_run_id = ""
        self._figures = Figures()
        self._due = self._note_due = 0.0
        self._is_taken_up = self._is_noted = self._is_away = False
        self._warned = False
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A training that failed is marked so; one that was interrupted stays open, to be resumed."""
        if self._finished:
            return
        if kind is None or issubclass(kind, Exception):
            self._end("FAILED" if kind else "FINISHED", {})
        else:
            self._write_note()

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Nested values are flattened to `section.key`."""
        self._figures.params |= flatten(values)
        self._flush_when_due()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """`values` by name; NaN and infinity are kept as they are."""
        now = int(time.time() * 1000)
        self._figures.metrics += [Metric(metric_name(name), float(value), now, step) for name, value in values.items()]
        self._flush_when_due()

    def finish(self, tags: Mapping[str, str]) -> None:
        """Sends what is left and ends the run; says what could not be sent."""
        self._end("FINISHED", tags)

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        self._finished = True
        self._figures.tags, self._figures.status = dict(tags), status
        if not self._attempt():
            self._keep()
        self._note.unlink(missing_ok=True)

    def _keep(self) -> None:
        """Keep what MLflow lacks; nor is a full disk a reason to lose a training."""
        if not self._run_id:
            # A run that is made later has these from its beginning.
            self._figures.tags = self._first_tags() | self._figures.tags
        try:
            keep(self._workspace, self._uri, self._run_id, self._figures)
        except OSError as error:
            log.warning("The figures of this training cannot be kept (%s): `diptych register` makes a run.", error)
            return
        log.warning("The figures of this training are kept: the next run, or `diptych register`, sends them.")

    def _flush_when_due(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._attempt()
        elif self._is_away and now >= self._note_due:
            self._write_note()

    def _attempt(self) -> bool:
        """Send all that waits; return whether that succeeded."""
        try:
            self._send()
            if self._is_noted:
                self._write_note()
        # Whatever goes wrong in there (network, database, server, disk) is no reason to lose a training.
        except Exception as error:
            self._is_away, self._due = True, time.monotonic() + RETRY_AFTER
            self._warn(error)
            self._write_note()
            return False
        self._is_away, self._due = False, time.monotonic() + FLUSH_EVERY
        return True

    def _send(self) -> None:
        if not self._is_taken_up:
            self._take_up()
        if self._client is None:
            client, experiment = connect(self._workspace, self._settings)
            self._close_other(client)
            if not self._resume(client):
                self._start(client, experiment)
            self._client = client
        else:
            require_answer(self._uri)
        self._figures.send(self._client, self._run_id)

    def _start(self, client: MlflowClient, experiment: str) -> None:
        self._run_id = str(client.create_run(experiment, tags=self._first_tags(), run_name="train").info.run_id)
        self._write_note()

    def _first_tags(self) -> dict[str, str]:
        """Return what is known before the training; the model that lies there is that of an earlier one."""
        tags = provenance(self._workspace)
        return {name: value for name, value in tags.items() if name not in ("weights_sha256", "model_sha256")}

    def _take_up(self) -> None:
        """Take up the run and the unsent figures of a training that was killed; those of another one are kept apart."""
        identity, found = self._identity(), Figures()
        self._is_taken_up = True
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            run_id, of = str(note["run_id"]), note["of"]
            found = Figures.of(note["figures"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if of == identity:
            self._run_id, self._is_noted = run_id, True
            self._figures.params = found.params | self._figures.params
            self._figures.metrics[:0] = found.metrics
        elif found.params or found.metrics:
            found.status = "KILLED"
            keep(self._workspace, of[0], run_id, found)
        else:
            self._other_run_id = run_id

    def _close_other(self, client: MlflowClient) -> None:
        """Close the run of a killed training of other parameters or data."""
        if self._other_run_id and is_active(client, self._other_run_id):
            client.set_terminated(self._other_run_id, "KILLED")
        self._other_run_id = ""

    def _resume(self, client: MlflowClient) -> bool:
        """Open the run of a killed training again; return whether there is one."""
        if not self._run_id:
            return False
        if is_active(client, self._run_id):
            client.update_run(self._run_id, status="RUNNING")
            return True
        log.warning("The MLflow run %s of an earlier training is gone.", self._run_id)
        return False

    def _write_note(self) -> None:
        """Note the run, and what it lacks, for the case that this training is killed."""
        if not self._is_taken_up:
            return
        unsent = Figures(self._figures.params, self._figures.metrics)
        self._note_due = time.monotonic() + FLUSH_EVERY
        try:
            write_json(self._note, {"run_id": self._run_id, "of": self._identity(), "figures": unsent.to_json()})
        except Exception as error:
            self._warn(error)
            return
        self._is_noted = bool(unsent.params or unsent.metrics)

    def _identity(self) -> list[str]:
        tags = provenance(self._workspace)
        # The project may have moved meanwhile, and its own store with it.
        return [place(self._workspace, self._uri), tags["params_sha256"], tags["data_md5"]]

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            said = reason(error, self._uri)
            if not isinstance(error, UnreachableError):
                said = f"MLflow at {without_secret(self._uri)} takes no figures ({said})."
            log.warning("%s The training goes on, and its figures are kept.", said)
        self._warned = True


def _experiment(client: MlflowClient, workspace: Workspace, params: Params) -> str:
    name, uri = params.register_.experiment, tracking_uri(workspace, params)
    folder = artifact_folder(workspace, uri)
    return find_experiment(client, name, uri) or str(
        client.create_experiment(name, artifact_location=folder.as_uri() if folder else None)
    )
