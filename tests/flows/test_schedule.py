"""The deployment on a real Prefect server: its schedule makes runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_clone import clone_project

PREFECT = str(Path(sys.executable).with_name("prefect"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Prefect server of this test's own, with nothing in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_API_URL", address)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    with (tmp_path / "server.log").open("w") as log:
        command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            assert becomes_true(lambda: answers(f"{address}/health"), 120), (tmp_path / "server.log").read_text()
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


def becomes_true(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def scheduled_runs(server: str) -> int:
    body = json.dumps({"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}).encode()
    request = urllib.request.Request(f"{server}/flow_runs/count", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return int(response.read())


@pytest.mark.slow
def test_the_schedule_of_the_deployment_makes_runs(server: str, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone_project(clone)
    commands = (["work-pool", "create", "diptych", "--type", "process"], ["--no-prompt", "deploy", "--all"])
    for command in commands:
        done = subprocess.run(
            [PREFECT, *command], cwd=clone, env=os.environ, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert becomes_true(lambda: scheduled_runs(server) > 0, 90), (tmp_path / "server.log").read_text()[-5000:]
