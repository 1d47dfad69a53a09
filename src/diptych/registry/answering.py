"""One request that shows within seconds whether MLflow answers.

MLflow itself tries a database ten times, which takes 105 s, and waits two minutes for a server, three times over. So a
training, a command and the doctor ask here first.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.errors import DiptychError
from diptych.project.addresses import without_secret
from diptych.registry.address import store_file
from diptych.registry.errors import OTHER_ADDRESS, UnreachableError, reason, store_errors_explained

if TYPE_CHECKING:
    from requests import Response

ANSWER_TIMEOUT = 5.0
"""Seconds in which a database or a server has to answer."""
_CONNECT_TIMEOUT = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": "timeout"}
"""Name of the connection timeout in seconds, by database, as its driver calls it."""
_PROBE_ENDPOINT = "/api/2.0/mlflow/experiments/get-by-name"
"""An endpoint that a server answers from its database; /health answers without one."""


def require_answer(uri: str) -> None:
    """Ask the MLflow at `uri` once whether it answers. A SQLite file that does not exist yet counts as an answer.

    Raises:
        UnreachableError: it does not answer within `ANSWER_TIMEOUT`; the message says why, and what to do.
        DiptychError: its store is damaged, or the database's driver is not installed.
    """
    store = store_file(uri)
    backend = uri.partition(":")[0].partition("+")[0]
    if store is not None:
        if store.exists():
            _ask_file(store)
    elif backend in _CONNECT_TIMEOUT:
        _ask_database(uri, {_CONNECT_TIMEOUT[backend]: int(ANSWER_TIMEOUT)})
    elif backend in ("http", "https"):
        _ask_server(uri)


def _ask_file(store: Path) -> None:
    with (
        store_errors_explained(store),
        closing(sqlite3.connect(store, timeout=ANSWER_TIMEOUT, isolation_level=None)) as database,
    ):
        database.execute("BEGIN IMMEDIATE")
        database.execute("SELECT count(*) FROM sqlite_master")
        database.execute("ROLLBACK")


def _ask_database(uri: str, timeout: dict[str, int]) -> None:
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        with create_engine(uri, poolclass=NullPool, connect_args=timeout).connect() as connection:
            connection.execute(text("SELECT 1"))
    except ModuleNotFoundError as error:
        raise DiptychError(
            f"MLflow's database {without_secret(uri)} needs the package {error.name}, which is not installed."
        ) from error
    except (ArgumentError, ValueError) as error:
        # Another attempt would give the same error.
        raise DiptychError(f"{without_secret(uri)} is no address of a database ({error}): {OTHER_ADDRESS}.") from error
    except SQLAlchemyError as error:
        raise _unreachable(uri, getattr(error, "orig", None) or error) from error


def _ask_server(uri: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    parameters = {"experiment_name": "Default"}
    try:
        credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        answer = http_request(  # type: ignore[no-untyped-call]
            credentials, _PROBE_ENDPOINT, "GET", max_retries=0, timeout=ANSWER_TIMEOUT, params=parameters
        )
    except MlflowException as error:
        # MLflow's and requests' errors wrap each other; the innermost is as clear as "[Errno 111] Connection refused".
        raise _unreachable(uri, _innermost(error)) from error
    if answer.status_code >= 500:
        raise _unreachable(uri, f"it answers {answer.status_code} {answer.reason}")
    _check_answer(uri, answer)


def _check_answer(uri: str, answer: Response) -> None:
    """Raise an error for an answer that is not MLflow's, or that denies access."""
    address = without_secret(uri)
    if answer.status_code in (401, 403):
        raise DiptychError(
            f"MLflow at {address} does not let this user in ({answer.status_code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    try:
        known = isinstance(answer.json(), dict)
    except ValueError:
        known = False
    if not known:
        raise DiptychError(
            f"{address} does not answer as MLflow does ({answer.status_code}), but with something else, such as the "
            f"login page of a proxy: {OTHER_ADDRESS}."
        )


def _innermost(error: BaseException) -> BaseException:
    within = error.__cause__ or error.__context__
    return error if within is None else _innermost(within)


def _unreachable(uri: str, cause: BaseException | str) -> UnreachableError:
    message = cause if isinstance(cause, str) else reason(cause, uri)
    return UnreachableError(
        f"MLflow at {without_secret(uri)} does not answer: {message.rstrip('.')}. Start it, or {OTHER_ADDRESS}."
    )
