"""The servers and a worker, by the scripts of docker/, and what is asked of them."""

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

PLACE = 420.0
"""Seconds in which the place of a run that was killed has to be free again; docs/operating.md says five minutes."""


class Stack(NamedTuple):
    """What the project needs to run by itself."""

    postgres: Service
    mlflow: Service
    prefect: Service
    worker: Service
    project: Project
    environment: dict[str, str]
    """Of commands that work on the project."""

    def trigger(self) -> str:
        """Has the deployment run; returns the id of the flow run."""
        deployment = self._ask("/deployments/name/retrain/retrain")["id"]
        made = self._ask(f"/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        return str(made["id"])

    def state(self, flow_run: str) -> str:
        """Of a flow run, as Prefect tells it."""
        return str(self._ask(f"/flow_runs/{flow_run}")["state"]["name"])

    def places_taken(self) -> int:
        """Of the one that the deployment's concurrency limit has."""
        return int(self._ask("/deployments/name/retrain/retrain")["global_concurrency_limit"]["active_slots"])

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """`diptych ARGUMENTS` in the project; what it says goes to `log`, its results to the file .out beside it."""
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
    """Everything started and deployed; what the project's processes leave in a temporary folder is in `folder`/tmp."""
    project = Project(folder)
    os.environ["PYTHONPATH"] = str(project.root / "src")
    # Imported a thousand times: not to be compiled each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with ExitStack() as opened:
        logs = folder / "logs"
        postgres = opened.enter_context(services.postgres(logs))
        storage = opened.enter_context(services.s3(logs))
        services.prepare(postgres, storage)
        mlflow = opened.enter_context(services.mlflow_server(logs, postgres, storage))
        prefect = opened.enter_context(services.prefect_server(logs, postgres))
        os.environ["TMPDIR"] = str(_own_tmp(folder))
        environment = services.environment(mlflow, prefect, PREFECT_HOME=str(folder / "prefect-client"))
        project.make(environment)
        subprocess.run(["diptych", "deploy"], cwd=project.root, env=environment, check=True, capture_output=True)
        subprocess.run(
            ["diptych", "schedule", "pause"], cwd=project.root, env=environment, check=True, capture_output=True
        )
        worker = opened.enter_context(services.worker(logs, project.root, prefect, mlflow))
        # For what this process itself asks of MLflow.
        os.environ |= {"MLFLOW_TRACKING_URI": mlflow.url, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        yield Stack(postgres, mlflow, prefect, worker, project, environment)


class Place:
    """Watches from now on when the deployment's place is free."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._since = time.monotonic()
        self.seconds: float | None = None
        """Until it was free; None while it is not."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def wait(self) -> float | None:
        """The seconds; None where it does not become free."""
        self._thread.join()
        return self.seconds

    def _watch(self) -> None:
        while self.seconds is None and time.monotonic() - self._since < PLACE:
            try:
                taken = self._stack.places_taken()
            except (OSError, ValueError):
                taken = 1  # The server does not answer now.
            if not taken:
                self.seconds = time.monotonic() - self._since
            time.sleep(1.0)


def _own_tmp(folder: Path) -> Path:
    # This process keeps the usual one.
    tempfile.gettempdir()
    path = folder / "tmp"
    path.mkdir()
    return path
