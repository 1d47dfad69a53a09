"""Registration: the trained model becomes a version of the registered model, once for the same model."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from diptych.config import Params
from diptych.data.cores import worker_count
from diptych.errors import DiptychError
from diptych.project.provenance import provenance
from diptych.project.recording import recorded_provenance
from diptych.project.workspace import Workspace
from diptych.registry.address import tracking_uri
from diptych.registry.connection import connect, global_tracking_uri
from diptych.registry.data_profile import log_profile
from diptych.registry.errors import UnreachableError, mlflow_errors_explained
from diptych.registry.figures import Measurement, flat_metrics, flat_params, metrics_now, send_metrics, send_params
from diptych.registry.model_card import dataset_counts, model_card
from diptych.registry.packaging import log_package
from diptych.registry.registered_model import CHALLENGER
from diptych.registry.unsent import send_unsent

_ADVICE = ". The trained model is kept, and is no version yet: run again, or `diptych register`, once MLflow answers."

_KEY_FIGURE = re.compile(r"(towers|qb_norm|reranked)/(rsum|(i2t|t2i)/recall_at_1)")
"""Metrics of the run that are metrics of the version too."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of the registered model; `created` is true if this call made it."""

    name: str
    version: str
    aliases: list[str]
    created: bool
    run_id: str
    experiment_id: str
    uri: str
    metrics: dict[str, float]
    tags: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def describe(self) -> str:
        """Return one line for people."""
        state = "registered" if self.created else "registered already, as it is"
        return f"{self.name} version {self.version} ({CHALLENGER}): {state}"


def check_registry(workspace: Workspace, params: Params) -> str:
    """Check MLflow before anything expensive is computed; return why it does not answer, or an empty text.

    A training needs no MLflow: its figures are stored, and it is registered once MLflow answers.

    Raises:
        DiptychError: registering there would fail later too; the message says what to do.
    """
    try:
        with mlflow_errors_explained(tracking_uri(workspace, params)):
            connect(workspace, params)
    except UnreachableError as error:
        return f"{error} The run goes on meanwhile; what it trains is registered once MLflow answers."
    return ""


def register(workspace: Workspace, params: Params, run_tags: Mapping[str, str] | None = None) -> RegisteredVersion:
    """Make artifacts/model a model version with the alias `challenger`, unless it is one already.

    A version is made by one call that brings its tags along, after its package is complete, so a kill leaves either a
    whole version or none. What it was made of is recorded in git first.

    The MLflow run also gets `run_tags`, which the version does not get.

    Raises:
        DiptychError: there is no trained model or no metrics yet, or MLflow does not answer.
    """
    tags = provenance(workspace)
    metrics = _read_metrics(workspace)
    if "weights_sha256" not in tags:
        raise DiptychError(f"{workspace.model} holds no trained model yet: run `diptych run`.")
    uri = tracking_uri(workspace, params)
    with mlflow_errors_explained(uri, _ADVICE):
        client, experiment = connect(workspace, params)
        send_unsent(workspace, uri, client, experiment)
        name = params.register_.model_name
        known = _find_version(client, name, tags["model_sha256"])
        with global_tracking_uri(uri):
            version = known or _create(client, experiment, workspace, params, metrics, run_tags or {})
        version = client.get_model_version(name, version.version)
        if not version.description:
            card = model_card(workspace, params, name, str(version.version), version.tags)
            client.update_model_version(name, version.version, card)
        if CHALLENGER not in version.aliases:
            client.set_registered_model_alias(name, CHALLENGER, version.version)
            version = client.get_model_version(name, version.version)
    return RegisteredVersion(
        name=name,
        version=str(version.version),
        aliases=list(version.aliases),
        created=known is None,
        run_id=str(version.run_id),
        experiment_id=experiment,
        uri=f"models:/{name}/{version.version}",
        metrics=metrics,
        tags=dict(version.tags),
    )


def _find_version(client: MlflowClient, name: str, model_sha256: str) -> ModelVersion | None:
    """Return the newest version with this model: the same weights, used in the same way; None where there is none."""
    versions = client.search_model_versions(f"name = '{name}' and tags.model_sha256 = '{model_sha256}'")
    return max(versions, key=lambda version: int(version.version), default=None)


def _create(
    client: MlflowClient,
    experiment: str,
    workspace: Workspace,
    params: Params,
    metrics: dict[str, float],
    run_tags: Mapping[str, str],
) -> ModelVersion:
    # The last bits depend on the number of threads, which `threads: null` does not record.
    tags = recorded_provenance(workspace) | {"threads": str(worker_count(params.threads))}
    run_id = _find_run(client, experiment, tags["weights_sha256"]) or _make_run(client, experiment, workspace, params)
    _complete_run(client, run_id, workspace, metrics, {**tags, **run_tags})
    log_profile(client, run_id, workspace, params)
    _log_dataset(client, run_id, workspace, params, tags["data_md5"])
    source, model_id = log_package(run_id, workspace.model)
    key_figures = metrics_now({name: value for name, value in metrics.items() if _KEY_FIGURE.fullmatch(name)}, 0)
    client.log_batch(run_id, [Metric(*figure, model_id=model_id, run_id=run_id) for figure in key_figures])
    name = params.register_.model_name
    try:
        client.create_registered_model(
            name, description="Finds the image for a sentence and the sentence for an image."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(name, source, run_id, tags=tags, model_id=model_id)
    client.set_tag(run_id, "model_version", f"{name}/{version.version}")
    return version


def _log_dataset(client: MlflowClient, run_id: str, workspace: Workspace, params: Params, data_md5: str) -> None:
    """Make the dataset version an input of the run, once."""
    inputs = client.get_run(run_id).inputs
    if inputs is not None and inputs.dataset_inputs:
        return
    splits = params.data.splits.model_dump()
    source = json.dumps({"path": "data.dvc", "md5": data_md5, "splits": splits})
    # MLflow takes digests of at most 36 characters.
    dataset = Dataset("data", data_md5[:36], "dvc", source, profile=json.dumps(dataset_counts(workspace)))
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _find_run(client: MlflowClient, experiment: str, weights: str) -> str | None:
    runs = client.search_runs([experiment], f"tags.weights_sha256 = '{weights}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _make_run(client: MlflowClient, experiment: str, workspace: Workspace, params: Params) -> str:
    """Make a run from the files: the training's own is in another store, or MLflow did not answer then."""
    run_id = str(client.create_run(experiment, run_name="train").info.run_id)
    send_params(client, run_id, flat_params(params.model_dump(by_alias=True)))
    send_metrics(client, run_id, _training_figures(workspace))
    client.set_terminated(run_id)
    return run_id


def _complete_run(
    client: MlflowClient, run_id: str, workspace: Workspace, metrics: dict[str, float], tags: dict[str, str]
) -> None:
    """Add what is known only after the evaluation: its figures, the reports, and the final dvc.lock."""
    send_metrics(client, run_id, metrics_now(metrics, 0))
    client.log_artifacts(run_id, str(workspace.reports), "reports")
    client.log_artifact(run_id, str(workspace.params))
    if (workspace.root / "dvc.lock").exists():
        client.log_artifact(run_id, str(workspace.root / "dvc.lock"))
    for name, value in sorted(tags.items()):
        client.set_tag(run_id, name, value)


def _read_metrics(workspace: Workspace) -> dict[str, float]:
    """Return the metrics of the model, and the RSUM of each baseline."""
    figures = {}
    for name in ("metrics", "baselines"):
        path = workspace.reports / f"{name}.json"
        try:
            figures[name] = flat_metrics(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError):
            raise DiptychError(f"{path} is missing or damaged: run `dvc repro evaluate`.") from None
    rsums = {f"baselines/{name}": value for name, value in figures["baselines"].items() if name.endswith("/rsum")}
    return figures["metrics"] | rsums


def _training_figures(workspace: Workspace) -> list[Measurement]:
    """Return the metrics in reports/training.csv, which has one row for each epoch."""
    path = workspace.reports / "training.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    metrics = []
    for row in rows:
        epoch = int(row.pop("epoch"))
        metrics += metrics_now(row, epoch)
    return metrics
