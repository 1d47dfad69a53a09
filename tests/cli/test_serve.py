"""`diptych serve`: where it listens, what it serves, and what it refuses before it listens."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from command import diptych
from fastapi.testclient import TestClient
from searching import write_photos
from tiny_model import write_tiny_model

from diptych.project.workspace import Workspace


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("serve") / "model")


@pytest.fixture(autouse=True)
def indexed(inside: Workspace, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with an indexed collection, whose threads are this process's."""
    for name in ("DIPTYCH_SEARCH", "DIPTYCH_SEARCH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("diptych.model.device.prepare", lambda device, threads: torch.device("cpu"))
    write_photos(inside.root / "photos", ["a.png", "b.png"])
    assert diptych("index", model, "--collection", "pics", "--images", "photos") == 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a client got of a server that would have run on."""
    answers: list[Any] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        app: Any = server.config.app
        with TestClient(app, base_url="http://127.0.0.1") as client:
            asked_by_name = client.get("/version", headers={"Host": "evil.example"})
            delay = sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            answers.extend([sockets[0].getsockname(), client.get("/version"), asked_by_name.status_code, delay])
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return answers


def test_a_collection_is_served_on_this_machine_alone(
    model: Path, asked: list[Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert diptych("serve", model, "--collection", "pics", "--port", 0, "--open") == 0
    (host, port), answer, other_name, no_delay = asked
    assert (other_name, no_delay != 0) == (400, True)
    assert host == "127.0.0.1"
    assert answer.json()["images"] == 2
    shown = capfd.readouterr()
    assert f"Search at http://127.0.0.1:{port}/" in shown.out
    assert "Anybody" not in shown.err
    assert opened == [f"http://127.0.0.1:{port}/"]


def test_a_token_of_the_environment_is_asked_for(
    model: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_SEARCH_TOKEN", "secret")
    assert diptych("serve", model, "--collection", "pics", "--port", 0) == 0
    assert asked[1].status_code == 401


def test_other_machines_are_let_in_with_a_warning(
    model: Path, asked: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert diptych("serve", model, "--collection", "pics", "--port", 0, "--host", "0.0.0.0") == 0
    assert "Anybody who reaches 0.0.0.0 can search" in capfd.readouterr().err
    assert asked[2] == 200


def test_a_port_that_is_taken_is_an_error(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert diptych("serve", model, "--collection", "pics", "--port", port) == 1
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use" in capfd.readouterr().err


def test_a_server_that_waits_listens_before_anything_can_be_served(model: Path, asked: list[Any]) -> None:
    assert diptych("serve", model, "--port", 0, "--wait") == 0
    assert asked[1].status_code == 503


def test_what_is_not_indexed_is_not_served(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert diptych("serve", model, "--port", 0) == 1
    assert "The collection dataset is not indexed with the model" in capfd.readouterr().err


def test_the_help_says_that_feedback_keeps_a_profile_of_all_searches(capfd: pytest.CaptureFixture[str]) -> None:
    assert diptych("serve", "--help") == 0
    assert "a profile of all searches, in feedback/" in " ".join(capfd.readouterr().out.split())
