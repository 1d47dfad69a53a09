"""Models at an address of MLflow, for `Retriever.load`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient

from diptych.errors import DiptychError
from diptych.project.params import read_params
from diptych.project.workspace import find_workspace
from diptych.registry.answering import require_answer
from diptych.registry.errors import mlflow_errors_explained
from diptych.registry.registered_model import MODEL_NAME, RegisteredModel

_ADDRESS = re.compile(rf"models:/(?P<name>{MODEL_NAME.pattern})[/@](?P<version>[^/@]+)")


@contextmanager
def fetched_model(address: str) -> Iterator[Path]:
    """Give the folder of the model at models:/NAME@ALIAS or models:/NAME/VERSION; it is removed at the end.

    Raises:
        DiptychError: the address is none, there is no such version, or it cannot be fetched.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise DiptychError(f"{address} is no address of a model: write models:/NAME@ALIAS or models:/NAME/VERSION.")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    model = _registered_model(match["name"])
    with model.fetched(model.find(match["version"])) as folder:
        yield folder


def _registered_model(name: str) -> RegisteredModel:
    try:
        workspace = find_workspace()
    except DiptychError as error:
        if not (uri := os.environ.get("MLFLOW_TRACKING_URI")):
            raise DiptychError(f"{error} Elsewhere, MLFLOW_TRACKING_URI names the MLflow with the model.") from None
        with mlflow_errors_explained(uri):
            require_answer(uri)
            return RegisteredModel(MlflowClient(tracking_uri=uri, registry_uri=uri), name, uri)
    return RegisteredModel.of(workspace, read_params(workspace), name)
