"""A training's run in MLflow."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from diptych.config import Params
from diptych.files import write_json
from diptych.progress import has_rank
from diptych.project.addresses import without_secret
from diptych.project.provenance import provenance
from diptych.project.workspace import Workspace
from diptych.registry.address import location_key, tracking_uri
from diptych.registry.answering import require_answer
from diptych.registry.connection import connect
from diptych.registry.errors import UnreachableError, reason
from diptych.registry.figures import Figures, flat_params, metrics_now
from diptych.registry.system_metrics import SystemMetrics
from diptych.registry.unsent import is_active, store_unsent

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_EVERY = 5.0
"""Seconds between two calls that send figures: a call costs more than its content."""
RETRY_AFTER = 60.0
"""Seconds between two attempts to reach an MLflow that does not answer."""
log = logging.getLogger(__name__)


class TrackedRun:
    """A training's run in MLflow, whose failures never stop the training.

    Figures that cannot be sent wait for the next attempt. A note in the workspace names the run and its unsent figures.
    A training that was killed continues them, if neither parameters nor data have changed since.

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
        self._system: SystemMetrics | None = None
        self._due = self._note_due = 0.0
        self._is_note_read = self._is_noted = self._is_away = False
        self._warned = False
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Mark a training that failed; leave the run of an interrupted one open, to be resumed."""
        if self._finished:
            return
        # torch raises this in a process of several when another one has died.
        lost_another = has_rank() and kind is not None and issubclass(kind, RuntimeError)
        if kind is None or (issubclass(kind, Exception) and not lost_another):
            self._end("FAILED" if kind else "FINISHED", {})
        else:
            self._write_note()

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log nested values by `section.key`."""
        self._figures.params |= flat_params(values)
        self._flush_when_due()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log `values` by name, and the use of the machine now and then; NaN and infinity stay as they are."""
        if self._system is None:
            self._system = SystemMetrics()
        self._figures.metrics += metrics_now({**values, **self._system.sample()}, step)
        self._flush_when_due()

    def finish(self, tags: Mapping[str, str]) -> None:
        """Send the remaining figures and end the run; warn of those that could not be sent."""
        self._end("FINISHED", tags)

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        self._finished = True
        self._figures.tags, self._figures.status = dict(tags), status
        if not self._attempt():
            self._store_unsent()
        self._note.unlink(missing_ok=True)

    def _store_unsent(self) -> None:
        """Store what MLflow lacks; a full disk does not end the training."""
        if not self._run_id:
            # A run that is made later needs these too.
            self._figures.tags = self._first_tags() | self._figures.tags
        try:
            store_unsent(self._workspace, self._uri, self._run_id, self._figures)
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
        """Send all unsent figures; return whether that succeeded."""
        try:
            self._send()
            if self._is_noted:
                self._write_note()
        # No failure of the network, the database, the server or the disk may end a training.
        except Exception as error:
            self._is_away, self._due = True, time.monotonic() + RETRY_AFTER
            self._warn(error)
            self._write_note()
            return False
        self._is_away, self._due = False, time.monotonic() + FLUSH_EVERY
        return True

    def _send(self) -> None:
        if not self._is_note_read:
            self._read_note()
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
        """Return the tags that are known before the training; the model in the workspace is of an earlier one."""
        tags = provenance(self._workspace)
        return {name: value for name, value in tags.items() if name not in ("weights_sha256", "model_sha256")}

    def _read_note(self) -> None:
        """Continue the run and the unsent figures of a killed training; store those of another training apart."""
        self._is_note_read = True
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            run_id, owner = str(note["run_id"]), note["of"]
            unsent = Figures.from_json(note["figures"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if owner == self._identity():
            self._run_id, self._is_noted = run_id, True
            self._figures.params = unsent.params | self._figures.params
            self._figures.metrics[:0] = unsent.metrics
        elif unsent.params or unsent.metrics:
            unsent.status = "KILLED"
            store_unsent(self._workspace, owner[0], run_id, unsent)
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
        """Note the run and its unsent figures, for the case that this training is killed."""
        if not self._is_note_read:
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
        return [location_key(self._workspace, self._uri), tags["params_sha256"], tags["data_md5"]]

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            message = reason(error, self._uri)
            if not isinstance(error, UnreachableError):
                message = f"MLflow at {without_secret(self._uri)} takes no figures ({message})."
            log.warning("%s The training goes on, and its figures are kept.", message)
        self._warned = True
