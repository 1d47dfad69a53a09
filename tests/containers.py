"""The stack of docker/compose.yaml in containers, on images that docker/testing/ makes of Debian's packages.

    with Stack(folder).running() as stack:
        stack.client("diptych", "deploy")
        stack.kill("worker")
        stack.wait_until_healthy("worker")

It needs a Docker engine: `make test-stack` starts one where none answers. Secrets, ports, volumes and the network are
the stack's own, and end with the block. Images stay.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import waiting
from sharing import free_ports

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
NAME = "diptych-testing"
"""Of the project, as compose calls what belongs together."""
DEBIAN = "diptych-testing/debian:12"
SERVICES = ("postgres", "s3", "mlflow", "prefect", "worker", "search")
"""Those that run on."""
PATIENCE = 240.0
"""Seconds in which a service has to be healthy; compose's own health checks allow more."""


def engine_missing() -> str:
    """Why there is no Docker engine; empty where there is one."""
    if shutil.which("docker") is None:
        return "docker is not installed; `make test-stack` says which of Debian's packages have it"
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True)
    return "" if answer.returncode == 0 else "no Docker engine answers; `make test-stack` starts one"


def docker(*arguments: str) -> str:
    """What `docker ARGUMENTS` prints; it has to succeed."""
    return run("docker", *arguments)


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def comes_true(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether a condition on containers holds within the time given to it; asking it may take a second."""
    return waiting.comes_true(condition, seconds, pause=1)


@dataclass
class Stack:
    """Compose's project, and the checkout on which its worker works.

    `image` is that of diptych. Where the tests are root, the checkout belongs to the user 1000, as the image expects.
    """

    folder: Path
    image: str = "diptych-testing/diptych:latest"
    password: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def project(self) -> Path:
        """The checkout."""
        return self.folder / "project"

    @cached_property
    def ports(self) -> dict[str, int]:
        """By service, on 127.0.0.1."""
        return dict(zip(("mlflow", "prefect", "s3", "search"), free_ports(4), strict=True))

    @cached_property
    def prefix(self) -> tuple[str, ...]:
        """What stands in the place of `docker compose --file docker/compose.yaml`."""
        # Debian's compose 1.29 does not know a name within the file.
        text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
        (self.folder / "compose.yaml").write_text(re.sub(r"^name: .*$", "", text, flags=re.M), encoding="utf-8")
        owner = "1000:1000" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"
        names = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "MLFLOW_SECRET_KEY")
        settings = {name: secrets.token_hex(16) for name in names}
        settings |= {f"{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        settings |= {"DIPTYCH_PASSWORD": self.password, "DIPTYCH_IMAGE": self.image, "DIPTYCH_USER": owner}
        settings["DIPTYCH_PROJECT"] = str(self.project)
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        (self.folder / "env").write_text("".join(lines), encoding="utf-8")
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)
        program = ("docker", "compose") if plugin.returncode == 0 else ("docker-compose",)
        files = ("--file", str(self.folder / "compose.yaml"), "--file", str(DOCKER / "testing/compose.override.yaml"))
        where = ("--project-name", NAME, "--project-directory", str(DOCKER), "--env-file", str(self.folder / "env"))
        return (*program, *where, *files)

    def compose(self, *arguments: str) -> str:
        """What a command of compose prints; it has to succeed."""
        return run(*self.prefix, *arguments)

    def documented(self, section: str, block: int, cwd: Path) -> None:
        """Run the commands of a block of docs/deploying.md on this stack. Compose 1.29 does not wait, so this does."""
        page = (ROOT / "docs/deploying.md").read_text(encoding="utf-8").split(f"## {section}\n")[1]
        console = re.findall(r"```console\n(.*?)```", page, re.S)[block]
        for command in re.split(r"^\$ ", re.sub(r"^> ", "", console, flags=re.M), flags=re.M)[1:]:
            for old, new in (
                ("docker compose --file docker/compose.yaml", " ".join(self.prefix)),
                ("--volume diptych_", f"--volume {NAME}_"),
                ("debian:stable-slim", DEBIAN),
                (" --wait", ""),
            ):
                command = command.replace(old, new)
            run("bash", "-euc", command, cwd=cwd)
            if " up --detach" in command:
                self.wait_until_healthy(*command.split(" up --detach")[1].split())

    @contextmanager
    def running(self) -> Iterator[Stack]:
        """All services, healthy; at the end nothing of them is left but images."""
        try:
            self.compose("up", "--detach")
            self.wait_until_healthy()
            yield self
        finally:
            self.compose("down", "--volumes", "--remove-orphans")

    def container(self, name: str) -> str:
        """The id of the container of a service."""
        return self.compose("ps", "--quiet", name).strip()

    def inspect(self, name: str, template: str) -> str:
        """What Docker knows of the container of a service."""
        return docker("inspect", "--format", template, self.container(name)).strip()

    def health(self, name: str) -> str:
        """One of starting, healthy and unhealthy."""
        return self.inspect(name, "{{.State.Health.Status}}")

    def wait_until_healthy(self, *names: str) -> None:
        """Without names: until all services are."""
        for name in names or SERVICES:
            assert comes_true(lambda name=name: self.health(name) == "healthy"), (  # type: ignore[misc]
                f"{name} is {self.health(name)}:\n{self.compose('logs', '--tail=100', name)}"
            )

    def kill(self, name: str) -> None:
        """Kill the first process of a container, from outside: Docker starts no container anew that it has killed."""
        process = self.inspect(name, "{{.State.Pid}}")
        started = self.inspect(name, "{{.State.StartedAt}}")
        docker("run", "--rm", "--pid=host", "--network=none", DEBIAN, "sh", "-c", f"kill -9 {process}")
        assert comes_true(lambda: self.inspect(name, "{{.State.StartedAt}}") != started, 60), f"{name} stays down"

    def client(self, *command: str) -> str:
        """What a command prints in the worker's container, with the passwords of the servers."""
        return self.compose("exec", "-T", "worker", "/opt/diptych/as-client.sh", *command)

    def prefect(self, path: str, body: Any = None) -> Any:
        """What Prefect's API answers."""
        token = base64.b64encode(f"admin:{self.password}".encode()).decode()
        return self._ask("prefect", f"/api/{path}", f"Basic {token}", body)

    def search(self, text: str) -> Any:
        """What the search page's API finds."""
        return self._ask("search", "/search", f"Bearer {self.password}", {"text": text, "k": 5})

    def _ask(self, service: str, path: str, authorization: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": authorization}
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[service]}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def trigger(self, **parameters: Any) -> str:
        """The id of a new run of the deployment."""
        deployment = self.prefect("deployments/name/retrain/retrain")["id"]
        body = {"parameters": {"promotion": "auto", **parameters}, "state": {"type": "SCHEDULED"}}
        return str(self.prefect(f"deployments/{deployment}/create_flow_run", body)["id"])

    def state(self, run_id: str) -> str:
        """The name of the state of a run."""
        return str(self.prefect(f"flow_runs/{run_id}")["state"]["name"])

    def ends(self, run_id: str, seconds: float = 600) -> str:
        """The name of the last state of a run, which has to end within the time given to it."""
        comes_true(lambda: self.prefect(f"flow_runs/{run_id}")["state"]["type"] in ENDED, seconds)
        return self.state(run_id)

    def works_at(self, run_id: str, stage: str) -> bool:
        """Whether a run is at a stage."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        return any(task["name"] == stage for task in self.prefect("task_runs/filter", body))

    def log(self, run_id: str) -> str:
        """What a run has written into its log."""
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.prefect("logs/filter", body))


ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
"""Types of the states in which a run ends."""
