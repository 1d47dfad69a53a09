"""Errors of MLflow and of its stores, in words for the user and without secrets."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.errors import DiptychError, is_disk_full
from diptych.project.addresses import without_secret
from diptych.registry.address import store_file

OTHER_ADDRESS = "correct MLFLOW_TRACKING_URI or register.tracking_uri in params.yaml"
"""Advice for an address of MLflow that is of no use."""
_LONGEST_REASON = 300


class UnreachableError(DiptychError):
    """MLflow does not answer now, and may later."""


@contextmanager
def mlflow_errors_explained(uri: str, advice: str = "") -> Iterator[None]:
    """Turn the errors of the MLflow at `uri` into errors for the user that end with `advice`.

    Raises:
        UnreachableError: MLflow or its store does not answer now.
        DiptychError: MLflow refuses, or its store is damaged.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DatabaseError, OperationalError

    try:
        yield
    except MlflowException as error:
        # The command line explains a full disk.
        if is_disk_full(error):
            raise
        raise DiptychError(f"MLflow at {without_secret(uri)} says: {reason(error, uri)}{advice}") from error
    except UnreachableError as error:
        raise UnreachableError(f"{error}{advice.removeprefix('.')}") from error
    except OperationalError as error:
        if is_disk_full(error):
            raise
        raise _unanswered(str(store_file(uri) or without_secret(uri)), error.orig) from error
    except DatabaseError as error:
        store = store_file(uri)
        if store is not None:
            raise _damaged(str(store), error.orig) from error
        raise DiptychError(
            f"MLflow's database {without_secret(uri)} refuses ({reason(error.orig or error, uri)}): see to its tables, "
            f"and to what its user may do{advice or '.'}"
        ) from error


def reason(error: BaseException, uri: str) -> str:
    """Return the first line of the message of `error`, without a secret that the address `uri` holds."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first.replace(uri, without_secret(uri))[:_LONGEST_REASON]


@contextmanager
def store_errors_explained(store: Path) -> Iterator[None]:
    """Turn the errors of a SQLite store into errors for the user.

    Raises:
        UnreachableError: it cannot be read or written now.
        DiptychError: it is damaged.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _unanswered(str(store), error) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(str(store), error) from error


def _damaged(store: str, message: object) -> DiptychError:
    return DiptychError(
        f"MLflow's store {store} is damaged ({message}). Bring back a copy of it, or move it away and run again: the "
        "model is registered anew, older versions are lost."
    )


def _unanswered(store: str, message: object) -> UnreachableError:
    advice = {
        "database is locked": f"another program has it locked: end that one (`fuser {store}` tells which)",
        "attempt to write a readonly database": "make it writable for this user",
        "unable to open database file": "it, or its folder, is not there or not for this user to open",
    }.get(str(message), f"see to the disk, or {OTHER_ADDRESS}")
    return UnreachableError(f"MLflow's store {store} does not answer ({message}): {advice}, then run again.")
