"""Versions of a registered model without a training: packages that hold some bytes in place of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow.models.utils
import mlflow.pyfunc
import mlflow.utils.environment
import pandas as pd
import pytest
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from diptych.config import Params
from diptych.project.provenance import model_digests
from diptych.project.workspace import Workspace
from diptych.registry.history import SETTLED, Event, record
from diptych.registry.registered_model import CHAMPION, RegisteredModel, Version, model_folder

HOLDS = {"expectations": [{"table": "images", "expectation": "unique", "column": "image_id", "success": True}]}
"""A validation report."""


def without_package_checks(patch: pytest.MonkeyPatch) -> None:
    """MLflow makes packages without loading each, and without comparing its requirements with what is installed.

    Both only warn. test_register.py loads a package that was made with both.
    """
    patch.setattr(mlflow.models.utils, "_validate_serving_input", lambda **options: None)
    for module in (mlflow.utils.environment, mlflow.pyfunc):
        patch.setattr(module, "warn_dependency_requirement_mismatches", lambda requirements: None)


def open_registry(workspace: Workspace, store: Path, name: str = "diptych") -> RegisteredModel:
    """A registered model without versions, in the workspace's own MLflow, which is a copy of `store`."""
    model = open_copy(workspace, store, name)
    model.client.create_registered_model(name)
    return model


def open_copy(workspace: Workspace, store: Path, name: str = "diptych") -> RegisteredModel:
    """The registered model of `store`, in a copy of it."""
    workspace.local.mkdir(parents=True, exist_ok=True)
    shutil.copy(store, workspace.local / "mlflow.db")
    # What this process has written of the runs to the original's folder, it would go on writing there.
    _artifact_repos_cache.clear()
    return RegisteredModel.of(workspace, Params(), name)


def make_version(
    model: RegisteredModel,
    folder: Path,
    weights: bytes | None = None,
    *,
    validation: dict[str, Any] | None = HOLDS,
    alias: str | None = None,
) -> Version:
    """The next version; its package lies in `folder`/packages, under a number of its own."""
    package = folder / "packages" / str(len(list(folder.glob("packages/*"))) + 1)
    content = model_folder(package)
    content.mkdir(parents=True)
    (content / "model.safetensors").write_bytes(weights or f"weights {package.name}".encode())
    return register_package(model, package, validation=validation, alias=alias)


def register_package(
    model: RegisteredModel,
    package: Path,
    *,
    validation: dict[str, Any] | None = HOLDS,
    alias: str | None = None,
) -> Version:
    """A package that lies there becomes a version, with a run of its own."""
    client = model.client
    experiment = client.get_experiment_by_name("diptych")
    assert experiment
    run_id = client.create_run(experiment.experiment_id).info.run_id
    if validation is not None:
        client.log_text(run_id, json.dumps(validation), "reports/validation.json")
    client.log_metric(run_id, "reranked/rsum", 130.0)
    made = client.create_model_version(model.name, str(package), run_id, tags=model_digests(model_folder(package)))
    if alias is not None:
        model.set_alias(alias, str(made.version))
    return model.find(str(made.version))


def package_of(model: RegisteredModel, version: Version) -> Path:
    """Where the package of a version lies."""
    return Path(model.client.get_model_version_download_uri(version.name, version.version))


def crown(model: RegisteredModel, *numbers: str) -> None:
    """Makes these versions champion, one after the other, without a gate."""
    for number in numbers:
        event = record(model, Event("promoted", model.aliases().get(CHAMPION), number, "it is good"))
        model.set_alias(CHAMPION, number)
        model.client.set_registered_model_tag(model.name, SETTLED, str(event))


def write_accepted(workspace: Workspace) -> None:
    """What validation would have written of the images and captions that lie prepared, and their tokenizer."""
    images = pd.read_parquet(workspace.prepared / "images.parquet")
    numbers = images["image_id"]
    shape = {"width": 40 + numbers % 3, "height": 40, "phash": [f"{number:016x}" for number in numbers]}
    shape["objects"] = ['["dog", "ball"]' if number % 2 else '["dog"]' for number in numbers]
    images.assign(**shape).to_parquet(workspace.manifest)
    shutil.copy(workspace.prepared / "captions.parquet", workspace.captions)
    shutil.copytree(workspace.prepared / "tokenizer", workspace.tokenizer)
