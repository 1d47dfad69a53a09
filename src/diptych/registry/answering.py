"""Whether MLflow answers: one attempt that is over within seconds.

MLflow itself tries a database ten times, which takes 105 s, and waits two minutes for a server, three times over. A
training, a command and the doctor would wait with it; so they ask here first.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.errors import DiptychError
from diptych.project.addresses import without_secret
from diptych.registry.address import store_file

if TYPE_CHECKING:
    from requests import Response

PATIENCE = 5.0
"""Seconds in which a database or a server has to answer."""
_CONNECT_TIMEOUT = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": "timeout"}
"""What the drivers call the seconds that connecting may take."""
_PROBE_ENDPOINT = "/api/2.0/mlflow/experiments/get-by-name"
"""An endpoint that a server answers from its database; /health answers without one."""
_OTHER_ADDRESS = "correct MLFLOW_TRACKING_URI or register.tracking_uri in params.yaml"


class UnreachableError(DiptychError):
    """MLflow does not answer now, and may later."""


def require_answer(uri: str) -> None:
    """Ask the MLflow at `uri` for a sign of life, once. A SQLite file that is yet to be made counts as one.

    Raises:
        UnreachableError: it does not answer within `PATIENCE`; the message says why, and what to do.
        DiptychError: its store is damaged, or the database's driver is not installed.
    """
    store = store_file(uri)
    backend = uri.partition(":")[0].partition("+")[0]
    if store is not None:
        if store.exists():
            _ask_file(store)
    elif backend in _CONNECT_TIMEOUT:
        _ask_database(uri, {_CONNECT_TIMEOUT[backend]: int(PATIENCE)})
    elif backend in ("http", "https"):
        _ask_server(uri)


def reason(error: BaseException, uri: str) -> str:
    """Return the first line of what `error` says of the store at `uri`, without a secret that the address holds."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first.replace(uri, without_secret(uri))[:300]


def damaged(where: str, said: object) -> DiptychError:
    """Return the error of a store that is no database, or no whole one."""
    return DiptychError(
        f"MLflow's store {where} is damaged ({said}). Bring back a copy of it, or move it away and run again: the "
        "model is registered anew, older versions are lost."
    )


def unanswered(where: str, said: object) -> UnreachableError:
    """Return the error of a SQLite store that cannot be read or written now."""
    what = {
        "database is locked": f"another program has it locked: end that one (`fuser {where}` tells which)",
        "attempt to write a readonly database": "make it writable for this user",
        "unable to open database file": "it, or its folder, is not there or not for this user to open",
    }.get(str(said), f"see to the disk, or {_OTHER_ADDRESS}")
    return UnreachableError(f"MLflow's store {where} does not answer ({said}): {what}, then run again.")


def _ask_file(store: Path) -> None:
    try:
        with closing(sqlite3.connect(store, timeout=PATIENCE, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT count(*) FROM sqlite_master")
            database.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        raise unanswered(str(store), error) from error
    except sqlite3.DatabaseError as error:
        raise damaged(str(store), error) from error


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
        # No later attempt would find another answer.
        raise DiptychError(f"{without_secret(uri)} is no address of a database ({error}): {_OTHER_ADDRESS}.") from error
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
            credentials, _PROBE_ENDPOINT, "GET", max_retries=0, timeout=PATIENCE, params=parameters
        )
    except MlflowException as error:
        # MLflow's and requests' words wrap each other; the innermost tell: "[Errno 111] Connection refused".
        raise _unreachable(uri, _innermost(error)) from error
    if answer.status_code >= 500:
        raise _unreachable(uri, f"it answers {answer.status_code} {answer.reason}")
    _check_answer(uri, answer)


def _check_answer(uri: str, answer: Response) -> None:
    """Refuse an answer that MLflow gives to nobody whom it lets in."""
    where = without_secret(uri)
    if answer.status_code in (401, 403):
        raise DiptychError(
            f"MLflow at {where} does not let this user in ({answer.status_code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    try:
        known = isinstance(answer.json(), dict)
    except ValueError:
        known = False
    if not known:
        raise DiptychError(
            f"{where} does not answer as MLflow does ({answer.status_code}), but with something else, such as the "
            f"login page of a proxy: {_OTHER_ADDRESS}."
        )


def _innermost(error: BaseException) -> BaseException:
    within = error.__cause__ or error.__context__
    return error if within is None else _innermost(within)


def _unreachable(uri: str, said: BaseException | str) -> UnreachableError:
    told = said if isinstance(said, str) else reason(said, uri)
    return UnreachableError(
        f"MLflow at {without_secret(uri)} does not answer: {told.rstrip('.')}. Start it, or {_OTHER_ADDRESS}."
    )
