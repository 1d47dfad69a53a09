"""Errors of MLflow and its stores reach the user in words, with advice, and without secrets."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DatabaseError, OperationalError, ProgrammingError

from diptych.errors import DiptychError
from diptych.registry.errors import UnreachableError, mlflow_errors_explained, reason, store_errors_explained

SERVER, FILE = "http://me:secret@mlflow.example", "sqlite:////srv/mlflow.db"


def explained(uri: str, error: Exception, advice: str = "") -> DiptychError:
    """The error that the user gets; its cause is the one that was raised."""
    with pytest.raises(DiptychError) as raised, mlflow_errors_explained(uri, advice):
        raise error
    assert raised.value.__cause__ is error
    assert "secret" not in str(raised.value)
    return raised.value


def test_an_error_of_mlflow_is_its_first_line_and_the_advice():
    error = explained(SERVER, MlflowException(f"no run at {SERVER}\nand a traceback"), ". Run again.")

    assert str(error) == "MLflow at http://mlflow.example says: no run at http://mlflow.example. Run again."
    assert not isinstance(error, UnreachableError)


def test_an_mlflow_that_does_not_answer_stays_unreachable_and_gets_the_advice():
    error = explained(SERVER, UnreachableError("MLflow does not answer: start it."), ". The model is kept.")

    assert str(error) == "MLflow does not answer: start it. The model is kept."
    assert isinstance(error, UnreachableError)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("database is locked", r"another program has it locked: end that one \(`fuser /srv/mlflow\.db` tells which\)"),
        ("attempt to write a readonly database", "make it writable for this user"),
        ("unable to open database file", "it, or its folder, is not there or not for this user to open"),
        ("disk I/O error", r"see to the disk, or correct MLFLOW_TRACKING_URI or register\.tracking_uri"),
    ],
)
def test_a_store_that_cannot_be_used_now_is_unreachable_with_what_to_do(message, advice):
    error = explained(FILE, OperationalError("SELECT 1", {}, Exception(message)))

    assert isinstance(error, UnreachableError)
    with pytest.raises(UnreachableError, match=rf"store /srv/mlflow\.db does not answer \({message}\): {advice}"):
        raise error


def test_a_database_that_goes_away_is_named_without_its_password():
    error = explained("postgresql://me:secret@host/x", OperationalError("SELECT 1", {}, Exception("server closed")))

    assert isinstance(error, UnreachableError)
    assert str(error).startswith("MLflow's store postgresql://host/x does not answer (server closed): see to the disk")


def test_a_file_that_is_no_database_is_damaged():
    error = explained(FILE, DatabaseError("SELECT 1", {}, Exception("file is not a database")))

    assert str(error).startswith("MLflow's store /srv/mlflow.db is damaged (file is not a database). Bring back a copy")
    assert not isinstance(error, UnreachableError)


def test_a_database_that_refuses_is_not_called_damaged():
    refused = ProgrammingError("CREATE TABLE a", {}, Exception("permission denied for schema public"))
    error = str(explained("postgresql://me:secret@host/x", refused))

    assert "postgresql://host/x refuses (permission denied for schema public)" in error
    assert error.endswith("and to what its user may do.")


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("failures occurred:\n##### File a #####\n[Errno 28] No space left on device"),
        MlflowException("failures occurred:\n##### File a #####\n[Errno 122] Disk quota exceeded"),
        OperationalError("INSERT", {}, Exception("database or disk is full")),
    ],
)
def test_a_full_disk_is_for_the_command_line_to_explain(error):
    with pytest.raises(type(error)) as raised, mlflow_errors_explained(FILE):
        raise error
    assert raised.value is error


def test_another_error_passes_as_it_is():
    with pytest.raises(KeyError, match="x"), mlflow_errors_explained(SERVER):
        raise KeyError("x")


def test_a_reason_is_one_line_of_a_length_that_can_be_read_without_a_secret():
    assert reason(ValueError(f"GET {SERVER}/api\nmore"), SERVER) == "GET http://mlflow.example/api"
    assert reason(ValueError("x" * 1000), SERVER) == "x" * 300
    assert reason(TimeoutError(), SERVER) == "TimeoutError"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (sqlite3.OperationalError("database is locked"), UnreachableError, "does not answer (database is locked)"),
        (sqlite3.DatabaseError("file is not a database"), DiptychError, "is damaged (file is not a database)"),
    ],
)
def test_an_error_of_a_store_that_is_opened_here_is_the_same(error, kind, message):
    with pytest.raises(DiptychError) as raised, store_errors_explained(Path("/srv/mlflow.db")):
        raise error

    assert type(raised.value) is kind
    assert str(raised.value).startswith(f"MLflow's store /srv/mlflow.db {message}")
