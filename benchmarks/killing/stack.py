"""The servers and a worker, by the scripts of docker/, and requests to them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import services
from services import Service

from .project import Project

SLOT_PATIENCE = 420.0
"""Seconds within which the slot of a killed run has to be free again; docs/operating.md says five minutes."""


class Stack(NamedTuple):
    """The services that a project needs for runs by itself."""

    postgres: Service
    mlflow: Service
    prefect: Service
    worker: Service
    project: Project
    environment: dict[str, str]
    """Environment of commands that work on the project."""

    def trigger(self) -> str:
        """Trigger the deployment; return the id of the flow run."""
        deployment = self._ask("/deployments/name/retrain/retrain")["id"]
        made = self._ask(f"/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        return str(made["id"])

    def state(self, flow_run: str) -> str:
        """Return the name of a flow run's state in Prefect."""
        return str(self._ask(f"/flow_runs/{flow_run}")["state"]["name"])

    def active_slots(self) -> int:
        """Return the number of occupied slots of the deployment's concurrency limit, which has one slot."""
        return int(self._ask("/deployments/name/retrain/retrain")["global_concurrency_limit"]["active_slots"])

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start `diptych ARGUMENTS` in the project; stderr goes to `log`, and stdout to the file with suffix .out."""
        with log.with_suffix(".out").open("wb") as output, log.open("wb") as errors:
            return subprocess.Popen(
                ["diptych", *arguments],
                cwd=self.project.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    def _ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        address = f"{self.prefect.clients['PREFECT_API_URL']}{path}"
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


@contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """Start all services and deploy the project; `folder`/tmp is the temporary folder of the project's processes."""
    project = Project(folder)
    os.environ["PYTHONPATH"] = str(project.root / "src")
    # Modules are imported a thousand times: they are not to be compiled each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with ExitStack() as opened:
        logs = folder / "logs"
        postgres = opened.enter_context(services.postgres(logs))
        storage = opened.enter_context(services.s3(logs))
        services.prepare(postgres, storage)
        mlflow = opened.enter_context(services.mlflow_server(logs, postgres, storage))
        prefect = opened.enter_context(services.prefect_server(logs, postgres))
        os.environ["TMPDIR"] = str(_temporary_folder(folder))
        environment = services.environment(mlflow, prefect, PREFECT_HOME=str(folder / "prefect-client"))
        project.make(environment)
        subprocess.run(["diptych", "deploy"], cwd=project.root, env=environment, check=True, capture_output=True)
        subprocess.run(
            ["diptych", "schedule", "pause"], cwd=project.root, env=environment, check=True, capture_output=True
        )
        worker = opened.enter_context(services.worker(logs, project.root, prefect, mlflow))
        # This process sends requests to MLflow too.
        os.environ |= {"MLFLOW_TRACKING_URI": mlflow.url, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        yield Stack(postgres, mlflow, prefect, worker, project, environment)


class SlotWatch:
    """A thread that measures the time until the deployment's slot is free."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._since = time.monotonic()
        self.seconds: float | None = None
        """Seconds until the slot was free; None while it is occupied."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def wait(self) -> float | None:
        """Wait until the slot is free and return the seconds; None where it does not become free."""
        self._thread.join()
        return self.seconds

    def _watch(self) -> None:
        while self.seconds is None and time.monotonic() - self._since < SLOT_PATIENCE:
            try:
                occupied = self._stack.active_slots()
            except (OSError, ValueError):
                occupied = 1  # The server does not answer now.
            if not occupied:
                self.seconds = time.monotonic() - self._since
            time.sleep(1.0)


def _temporary_folder(folder: Path) -> Path:
    # This process keeps the usual one: tempfile remembers the first answer.
    tempfile.gettempdir()
    path = folder / "tmp"
    path.mkdir()
    return path
