"""The server that a run speaks to: whether it answers as it should, and one of the run's own."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from diptych.errors import DiptychError
from diptych.orchestration import server as prefect_server
from diptych.project.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def root(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, which is the current folder."""
    monkeypatch.chdir(project.root)
    return project.root


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """The address of a server that answers everything alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, "<html>Please log in</html>", "does not answer as Prefect does"),
        (200, "{}", "does not answer as Prefect does"),
        (200, '"2.20.1"', "is of another version"),
        (401, "{}", r"lets in only who has its password or a key \(401\)"),
        (404, "{}", r"has no Prefect server at this path \(404\)"),
        (500, "no database", "answered 500: no database"),
    ],
)
def test_a_server_that_answers_otherwise_is_named_with_what_is_wrong(
    root: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: str, told: str
) -> None:
    with answering(status, body) as url, temporary_settings({PREFECT_API_URL: url}):
        monkeypatch.setenv("PREFECT_API_URL", url)
        where = "Its address is in the environment variable PREFECT_API_URL"
        with pytest.raises(DiptychError, match=rf"^{url} {told}.*{where}.*unset PREFECT_API_URL"):
            prefect_server.ready(root)


def test_a_server_that_never_answers_is_given_up_soon(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_server, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(DiptychError, match=f"^{url} does not answer: no answer in time"),
        ):
            prefect_server.ready(root)


def test_a_server_that_goes_away_in_the_middle_is_told_with_what_is_kept(root: Path) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        with (
            pytest.raises(DiptychError, match=r"for itself does not answer: refused\. Run again\.$"),
            prefect_server.explained("Run again."),
        ):
            raise httpx.ConnectError("refused")
        with pytest.raises(KeyError), prefect_server.explained():
            raise KeyError("of something else")


def test_a_server_of_the_runs_own_that_ends_at_once_is_given_up(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes two seconds to import, in each process of the tests.
    from prefect.server.api.server import SubprocessASGIServer

    started, stopped = [], []
    stop = SubprocessASGIServer.stop

    def stop_and_record(self: SubprocessASGIServer) -> None:
        stopped.append(self)
        stop(self)

    def end_at_once(self: SubprocessASGIServer) -> subprocess.Popen[bytes]:
        started.append(self.port)
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(3)"])
        child.wait()
        return child

    monkeypatch.setattr(SubprocessASGIServer, "_run_uvicorn_command", end_at_once)
    monkeypatch.setattr(SubprocessASGIServer, "stop", stop_and_record)
    with (
        temporary_settings({PREFECT_HOME: tmp_path / "home"}, restore_defaults={PREFECT_API_URL}),
        pytest.raises(DiptychError, match=rf"did not start \(it ended at once\).*{tmp_path / 'home'}"),
    ):
        prefect_server.ready(root)
    assert len(started) == 3
    # Only a server that was stopped is started anew the next time.
    assert len(stopped) == 1


def test_a_home_that_cannot_be_written_to_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        temporary_settings({PREFECT_HOME: tmp_path / "file" / "home"}, restore_defaults={PREFECT_API_URL}),
        pytest.raises(DiptychError, match=rf"cannot write to its folder {tmp_path / 'file' / 'home'}: Not a directory"),
    ):
        prefect_server.ready(root)


def test_without_a_server_of_its_own_a_run_needs_another(root: Path) -> None:
    with (
        temporary_settings({PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}, restore_defaults={PREFECT_API_URL}),
        pytest.raises(DiptychError, match="a run needs a server: set PREFECT_API_URL"),
    ):
        prefect_server.ready(root)
