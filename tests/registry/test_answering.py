"""Whether MLflow answers is known within seconds, and why not is told."""

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diptych.errors import DiptychError
from diptych.registry import answering
from diptych.registry.answering import require_answer
from diptych.registry.errors import UnreachableError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "ANSWER_TIMEOUT", 0.2)


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


def test_a_store_that_is_yet_to_be_made_is_no_fault(tmp_path):
    require_answer(f"sqlite:///{tmp_path}/none.db")

    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_at_work_answers(mlflow_store):
    require_answer(f"sqlite:///{mlflow_store}")


def test_a_file_that_another_program_has_locked_is_told_with_how_to_find_that_one(tmp_path):
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE a (b)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UnreachableError, match=rf"database is locked.*fuser {path}"):
            require_answer(f"sqlite:///{path}")


def test_a_file_that_is_no_database_is_damaged(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(DiptychError, match=r"mlflow\.db is damaged \(file is not a database\)"):
        require_answer(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_nobody_at_the_address_is_told_without_the_password(scheme):
    with pytest.raises(UnreachableError, match=r"does not answer: .*Connection refused.*MLFLOW_TRACKING_URI") as told:
        require_answer(f"{scheme}://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(("scheme", "words"), [("http", "timed out"), ("postgresql", "timeout expired")])
def test_a_server_that_never_answers_costs_seconds(monkeypatch, scheme, words):
    # The least that PostgreSQL's library waits is two seconds.
    monkeypatch.setattr(answering, "ANSWER_TIMEOUT", 2.0)
    started = time.monotonic()
    with silent_server() as port, pytest.raises(UnreachableError, match=words):
        require_answer(f"{scheme}://127.0.0.1:{port}/x")
    assert time.monotonic() - started < 60


def test_a_database_without_its_driver_names_the_package():
    with pytest.raises(DiptychError, match="needs the package pymysql"):
        require_answer("mysql+pymysql://me:secret@127.0.0.1/x")


@contextmanager
def server(status: int, body: str) -> Iterator[int]:
    """The port of a server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield one.server_port
        finally:
            one.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "Unauthorized", r"does not let this user in \(401\): set MLFLOW_TRACKING_USERNAME"),
        (200, "<html>login</html>", r"does not answer as MLflow does \(200\).*correct MLFLOW_TRACKING_URI"),
        (404, "not here", r"does not answer as MLflow does \(404\)"),
        (200, "[]", r"does not answer as MLflow does"),
        (502, "bad gateway", r"it answers 502|502 error"),
    ],
)
def test_an_answer_of_another_kind_is_told_with_what_to_do(monkeypatch, status, body, words):
    monkeypatch.setattr(answering, "ANSWER_TIMEOUT", 5.0)
    with server(status, body) as port, pytest.raises(DiptychError, match=words) as told:
        require_answer(f"http://me:secret@127.0.0.1:{port}")
    assert "secret" not in str(told.value)


def test_the_answer_of_an_mlflow_without_the_experiment_is_one(monkeypatch):
    monkeypatch.setattr(answering, "ANSWER_TIMEOUT", 5.0)
    with server(404, '{"error_code": "RESOURCE_DOES_NOT_EXIST"}') as port:
        require_answer(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("uri", ["postgresql+nodriver://me:secret@h/db", "postgresql://me:secret@h:port/db"])
def test_what_is_no_address_of_a_database_is_not_taken_for_one_that_is_away(uri):
    with pytest.raises(DiptychError, match=r"is no address of a database .*MLFLOW_TRACKING_URI") as told:
        require_answer(uri)
    assert not isinstance(told.value, UnreachableError)
    assert "secret" not in str(told.value)
