"""What MLflow is told of a training: sent when it answers, and kept in the project until then."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from diptych.files import write_json
from diptych.registry.address import without_secret
from diptych.registry.answering import reason
from diptych.workspace import Workspace

_METRICS_A_CALL, _PARAMS_A_CALL = 500, 100
_LONGEST_PARAM = 6000

log = logging.getLogger(__name__)


@dataclass
class Figures:
    """Parameters, metrics, and at the end tags and a status, as far as MLflow does not have them."""

    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    status: str = ""
    """FINISHED or FAILED; empty while the training goes on."""

    def send(self, client: MlflowClient, run_id: str) -> None:
        """Send all of it to the run; what has arrived is removed here."""
        send_params(client, run_id, self.params)
        self.params = {}
        send_metrics(client, run_id, self.metrics)
        for name, value in self.tags.items():
            client.set_tag(run_id, name, value)
        if self.status:
            client.set_terminated(run_id, self.status)


def send_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Send parameters, cut to the length and in calls of the size that MLflow takes."""
    params = [Param(key, text[:_LONGEST_PARAM]) for key, text in values.items()]
    for start in range(0, len(params), _PARAMS_A_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_A_CALL])


def send_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    """Send metrics in calls of a size that MLflow takes; what is sent is removed from `metrics`."""
    while metrics:
        client.log_batch(run_id, metrics=metrics[:_METRICS_A_CALL])
        del metrics[:_METRICS_A_CALL]


def keep(workspace: Workspace, uri: str, run_id: str, figures: Figures) -> None:
    """Keep the figures of a training that has ended, for `send_kept`.

    Args:
        uri: the MLflow that they are for.
        run_id: the training's run there; empty where none could be made.
    """
    metrics = [[one.key, repr(one.value), one.timestamp, one.step] for one in figures.metrics]
    content = {"uri": without_secret(uri), "run_id": run_id, **vars(figures), "metrics": metrics}
    write_json(_folder(workspace) / f"{time.time_ns()}.json", content)


def send_kept(workspace: Workspace, uri: str, client: MlflowClient, experiment: str) -> None:
    """Send what earlier trainings could not to the MLflow at `uri`, each to its run or to a new one.

    What MLflow does not take stays for the next time, and keeps nothing else from being done.
    """
    for path in sorted(_folder(workspace).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            metrics = [Metric(key, float(value), when, step) for key, value, when, step in content["metrics"]]
            figures = Figures(content["params"], metrics, content["tags"], content["status"])
            meant, run_id = content["uri"], content["run_id"]
        except (ValueError, TypeError, KeyError) as error:
            log.warning("%s is damaged (%r), so MLflow lacks the figures of a training.", path, error)
            path.unlink()
            continue
        if meant != without_secret(uri):
            continue
        try:
            figures.send(client, _run(client, run_id, experiment))
            path.unlink()
        except MlflowException as error:
            told = "MLflow does not take the figures of an earlier training (%s); to give them up, remove %s"
            log.warning(told, reason(error, uri), path)


def _run(client: MlflowClient, run_id: str, experiment: str) -> str:
    """Return the run, or a new one where it was never made or is gone."""
    try:
        if run_id and client.get_run(run_id).info.lifecycle_stage == "active":
            return run_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return str(client.create_run(experiment, run_name="train").info.run_id)


def _folder(workspace: Workspace) -> Path:
    return workspace.local / "unsent"
