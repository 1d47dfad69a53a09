"""Where MLflow is, and a training's run in it."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from diptych.config import Params
from diptych.files import write_json
from diptych.registry.provenance import provenance
from diptych.workspace import Workspace

FLUSH_EVERY = 5.0
"""Seconds in which figures are gathered before they are sent: a call costs more than what it carries."""
RETRY_AFTER = 60.0
"""Seconds of peace that a training has from an MLflow that does not answer."""
_METRICS_A_CALL, _PARAMS_A_CALL = 500, 100
_LONGEST_PARAM = 6000

log = logging.getLogger(__name__)
for _noisy in ("mlflow", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)
# It warns of a missing pip, which an environment made by uv does not have.
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)


def tracking_uri(workspace: Workspace, params: Params) -> str:
    """The environment's MLflow, else that of params.yaml, else the workspace's own."""
    own = f"sqlite:///{workspace.local.resolve()}/mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or params.register_.tracking_uri or own


def is_own(uri: str) -> bool:
    """Whether the store is a file here, not a server."""
    return uri.startswith("sqlite:")


def connect(workspace: Workspace, params: Params) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, which is created where it is missing.

    Two processes that create the tables of a fresh store at once ruin it, so they take turns.
    """
    uri = tracking_uri(workspace, params)
    workspace.local.mkdir(exist_ok=True)
    with FileLock(workspace.local / "mlflow.lock"):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        return client, _experiment(client, workspace, params)


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


def without_secret(uri: str) -> str:
    """The address without the user and password that it may hold."""
    scheme, separator, rest = uri.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


def reason(error: Exception, uri: str) -> str:
    """The first line of what `error` says of the store at `uri`, without a secret that the address holds."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first.replace(uri, without_secret(uri))[:300]


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


def send_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Cut to the length, and in calls of the size, that MLflow takes."""
    params = [Param(key, text[:_LONGEST_PARAM]) for key, text in values.items()]
    for start in range(0, len(params), _PARAMS_A_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_A_CALL])


def send_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    """In calls of a size that MLflow takes; what is sent is removed from `metrics`."""
    while metrics:
        client.log_batch(run_id, metrics=metrics[:_METRICS_A_CALL])
        del metrics[:_METRICS_A_CALL]


class TrackedRun:
    """A training's run in MLflow. What MLflow does, or fails to do, never stops the training.

    Figures that cannot be sent wait for the next attempt. A training that was killed finds its run again, by a note in
    the workspace, if neither parameters nor data have changed since.

        with TrackedRun(workspace, params) as run:
            run.log_params(...)
            run.log_metrics(..., step)
            run.finish(tags)
    """

    def __init__(self, workspace: Workspace, params: Params) -> None:
        self._workspace = workspace
        self._settings = params
        self._note = workspace.local / "training-run.json"
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._params: dict[str, str] = {}
        self._metrics: list[Metric] = []
        self._due = 0.0
        self._warned = False
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A training that failed is marked so; one that was interrupted stays open, to be resumed."""
        if not self._finished and (kind is None or issubclass(kind, Exception)):
            self._end("FAILED" if kind else "FINISHED", {})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Nested values are flattened to `section.key`."""
        self._params |= flatten(values)
        self._flush_when_due()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """`values` by name; NaN and infinity are kept as they are."""
        now = int(time.time() * 1000)
        self._metrics += [Metric(metric_name(name), float(value), now, step) for name, value in values.items()]
        self._flush_when_due()

    def finish(self, tags: Mapping[str, str]) -> None:
        """Sends what is left and ends the run; says what could not be sent."""
        self._end("FINISHED", tags)

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        self._finished = True
        if self._attempt():
            try:
                assert self._client is not None
                for name, value in tags.items():
                    self._client.set_tag(self._run_id, name, value)
                self._client.set_terminated(self._run_id, status)
            except Exception as error:
                self._warn(error)
        if self._warned and (self._metrics or self._params):
            log.warning(
                "%d figures of this training are not in MLflow; `diptych register` makes a run from reports/.",
                len(self._metrics),
            )
        self._note.unlink(missing_ok=True)

    def _flush_when_due(self) -> None:
        if time.monotonic() >= self._due:
            self._attempt()

    def _attempt(self) -> bool:
        """Sends all that waits; whether that succeeded."""
        try:
            self._send()
        # Whatever goes wrong in there (network, database, server, disk) is no reason to lose a training.
        except Exception as error:
            self._due = time.monotonic() + RETRY_AFTER
            self._warn(error)
            return False
        self._due = time.monotonic() + FLUSH_EVERY
        return True

    def _send(self) -> None:
        if self._client is None:
            client, experiment = connect(self._workspace, self._settings)
            self._run_id = self._resume(client) or self._start(client, experiment)
            self._client = client
        send_params(self._client, self._run_id, self._params)
        self._params = {}
        send_metrics(self._client, self._run_id, self._metrics)

    def _start(self, client: MlflowClient, experiment: str) -> str:
        tags = provenance(self._workspace)
        # The model that lies there is that of an earlier training.
        tags.pop("weights_sha256", None)
        tags.pop("model_sha256", None)
        run_id = str(client.create_run(experiment, tags=tags, run_name="train").info.run_id)
        write_json(self._note, {"run_id": run_id, "of": self._identity()})
        return run_id

    def _resume(self, client: MlflowClient) -> str | None:
        """The run of a killed training; one of other parameters or data is closed instead."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            run_id, same = str(note["run_id"]), note["of"] == self._identity()
        except (OSError, ValueError, KeyError):
            return None
        try:
            if same:
                client.update_run(run_id, status="RUNNING")
                return run_id
            client.set_terminated(run_id, "KILLED")
        except MlflowException:
            log.warning("The MLflow run %s of an earlier training is gone.", run_id)
        return None

    def _identity(self) -> list[str]:
        tags = provenance(self._workspace)
        return [tracking_uri(self._workspace, self._settings), tags["params_sha256"], tags["data_md5"]]

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            where = tracking_uri(self._workspace, self._settings)
            said = reason(error, where)
            log.warning("MLflow at %s takes no figures (%s); the training goes on.", without_secret(where), said)
        self._warned = True


def _experiment(client: MlflowClient, workspace: Workspace, params: Params) -> str:
    name = params.register_.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        own = is_own(tracking_uri(workspace, params))
        location = (workspace.local.resolve() / "mlartifacts").as_uri() if own else None
        return str(client.create_experiment(name, artifact_location=location))
    return str(found.experiment_id)
