"""The address of MLflow, and the places of its file and artifacts where it is a SQLite file."""

from __future__ import annotations

import os
from pathlib import Path

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.addresses import without_secret
from diptych.project.workspace import Workspace


def tracking_uri(workspace: Workspace, params: Params) -> str:
    """Return the address of MLflow: the environment's, else that of params.yaml, else the project's own store.

    A SQLite file without an absolute path lies in the project, whatever the current folder is: the stages run in the
    project's folder, and people in any.

    Raises:
        DiptychError: the address names no store that MLflow keeps runs in; the message names where it was set.
    """
    for source, uri in (
        ("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")),
        ("params.yaml: register.tracking_uri", params.register_.tracking_uri),
    ):
        if uri := (uri or "").strip():
            return _absolute(uri, workspace.root, source)
    return _sqlite(workspace.local.resolve() / "mlflow.db")


def store_file(uri: str) -> Path | None:
    """Return the file of a SQLite store; None where MLflow is a server or another database."""
    return Path(uri.partition(":///")[2].partition("?")[0]) if uri.startswith("sqlite") else None


def artifact_folder(workspace: Workspace, uri: str) -> Path | None:
    """Return the folder of the artifacts of the SQLite store at `uri`; None for another kind of store.

    Several projects may share a store outside of the project: its artifacts lie next to it.
    """
    store = store_file(uri)
    if store is None:
        return None
    return (workspace.local.resolve() if is_inside(workspace, store) else store.parent) / "mlartifacts"


def is_inside(workspace: Workspace, store: Path) -> bool:
    """Return whether the file of a store lies in the project; its folder .diptych may be a link out of it."""
    return any(store.is_relative_to(folder.resolve()) for folder in (workspace.root, workspace.local))


def location_key(workspace: Workspace, uri: str) -> str:
    """Return a key of the MLflow at `uri` for notes in the project: without secrets, and the same after a move."""
    store = store_file(uri)
    for name, folder in ((".diptych/", workspace.local.resolve()), ("", workspace.root.resolve())):
        if store is not None and store.is_relative_to(folder):
            return f"sqlite:///{name}{store.relative_to(folder)}"
    return without_secret(uri)


def _sqlite(file: Path, start: str = "sqlite", options: str = "") -> str:
    if "?" in str(file):
        raise DiptychError(f"MLflow can keep no store at {file}: its path holds a question mark. Move the project.")
    return f"{start}:///{file}{options}"


def _absolute(uri: str, root: Path, source: str) -> str:
    if uri.startswith("file:") or (":" not in uri and uri != "databricks"):
        raise DiptychError(
            f"{source} is {uri!r}, a folder, in which MLflow keeps no registry any more. Name a server "
            "(http://HOST:PORT), a database (postgresql://…) or a SQLite file (sqlite:///mlflow.db), or leave it out; "
            "`mlflow migrate-filestore` makes such a file of a folder."
        )
    if not uri.startswith("sqlite"):
        return uri
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        file = make_url(uri).database
    except ArgumentError:
        file = None
    if not file or file == ":memory:" or file.startswith("file:"):
        raise DiptychError(
            f"{source} is {uri!r}, which names no file that stays. Write sqlite:///mlflow.db for a file in the "
            "project, sqlite:////folder/mlflow.db for one elsewhere, or leave it out."
        )
    start, _, rest = uri.partition(":///")
    return _sqlite((root / file).resolve(), start, rest.removeprefix(file))
