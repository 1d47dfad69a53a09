"""The servers of the stack as processes on this machine, by the very scripts that docker/compose.yaml runs.

    with postgres(folder) as database, s3(folder) as storage:
        prepare(database, storage)
        with mlflow_server(folder, database, storage) as mlflow:
            ...
            mlflow.kill()
            mlflow.start()

Each listens on 127.0.0.1, on a port that was free, and stays there when it is started again. What PostgreSQL holds
outlasts all of them but its own `with`; what S3 holds is in memory, and ends with its process.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import shell
from sharing import free_ports
from waiting import comes_true

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
DOCKER = Path(__file__).parents[1] / "docker"
PATIENCE = 180.0
"""Seconds in which a server has to answer; making the tables takes twenty on idle cores."""


@dataclass
class Service:
    """A server that can be started, stopped, killed and started again.

    `clients` is what its clients have in their environment to find it.
    """

    name: str
    folder: Path
    port: int
    command: Sequence[str]
    environment: Mapping[str, str]
    healthy: Callable[[], bool]
    clients: dict[str, str] = field(default_factory=dict)
    working_folder: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """All that it has said, also before it was started again."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def begin(self) -> Self:
        """Starts it, without waiting until it answers."""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            # A group of its own: a kill must reach the processes that it has started.
            self.process = subprocess.Popen(
                self.command,
                cwd=self.working_folder or self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_tests,
            )
        return self

    def wait(self) -> Self:
        """Until it answers.

        Raises:
            RuntimeError: it has ended, or took too long; the message is the end of its log.
        """
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer:\n{self.log[-5000:]}")
            time.sleep(0.2)
        return self

    def start(self) -> Self:
        """Starts it, and waits until it answers."""
        return self.begin().wait()

    def stop(self) -> None:
        """As a container is stopped: it is asked to end, and killed if it has not within 30 s."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=30)
        self.kill()

    def kill(self) -> None:
        """At once, with all the processes that it has started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def restart(self) -> Self:
        """As `docker compose restart` does."""
        self.stop()
        return self.start()


def environment(*services: Service, **others: str) -> dict[str, str]:
    """That of a shell, with what the clients of `services` need."""
    clients = {name: value for service in services for name, value in service.clients.items()}
    return shell.environment(**clients | others)


def becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition on services, each question to which takes a while, holds within the time given to it."""
    return comes_true(condition, seconds, pause=0.2)


def postgres_missing() -> str:
    """Why PostgreSQL cannot run here; empty where it can."""
    missing = [program for program in ("initdb", "postgres") if shutil.which(program) is None]
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        missing.append("setpriv")
    return f"PostgreSQL's {' and '.join(missing)} not on PATH" if missing else ""


@contextmanager
def postgres(folder: Path) -> Iterator[Service]:
    """PostgreSQL with a password of its own; its files end with the block."""
    port, password = free_ports(1)[0], secrets.token_hex(16)
    clients = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "diptych", "PGPASSWORD": password}
    # Neither in `folder` nor in TMPDIR: PostgreSQL refuses to run as root, and others may not look into root's folders.
    home = Path(tempfile.mkdtemp(prefix="diptych-postgres-", dir="/tmp"))
    try:
        (home / "password").write_text(password)
        if os.geteuid() == 0:
            for path in (home, home / "password"):
                shutil.chown(path, "nobody", "nogroup")
        data = str(home / "data")
        options = ["--username=diptych", f"--pwfile={home / 'password'}", "--auth=scram-sha-256", "--no-sync"]
        initdb = [*_as_nobody(), "initdb", f"--pgdata={data}", "--encoding=UTF8", "--locale=C", *options]
        subprocess.run(initdb, cwd=home, env=environment(), check=True, capture_output=True)
        # A kill of the process takes nothing from what the kernel holds, and no test takes the power away.
        settings = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "fsync=off"]
        command = [*_as_nobody(), "postgres", "-D", data, *(word for one in settings for word in ("-c", one))]
        service = Service("postgres", folder, port, command, environment(), lambda: _lets_in(clients), clients, home)
        with _running(service):
            yield service
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def s3(folder: Path) -> Iterator[Service]:
    """An S3 endpoint without buckets."""
    port = free_ports(1)[0]
    clients = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "diptych",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    answers = f"http://127.0.0.1:{port}/moto-api/"
    with _running(Service("s3", folder, port, command, environment(), lambda: _answers(answers), clients)) as service:
        yield service


def prepare(database: Service, storage: Service) -> None:
    """The databases and the buckets, as compose's service `prepare` makes them."""
    command = [sys.executable, str(DOCKER / "prepare.py")]
    subprocess.run(command, env=environment(database, storage), check=True, capture_output=True)


@contextmanager
def mlflow_server(folder: Path, database: Service, storage: Service, password: str = "") -> Iterator[Service]:
    """MLflow on both; with a `password` of at least twelve characters it asks for that."""
    port = free_ports(1)[0]
    settings = {
        "MLFLOW_PORT": str(port),
        # Four are its default.
        "MLFLOW_WORKERS": "1",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    service = _scripted("mlflow-server", "/health", folder, port, environment(database, storage, **settings), password)
    service.clients["MLFLOW_TRACKING_URI"] = service.url
    if password:
        service.clients |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    with _running(service):
        yield service


@contextmanager
def prefect_server(folder: Path, database: Service, password: str = "", **others: str) -> Iterator[Service]:
    """Prefect on PostgreSQL; with a `password` it asks for that. `others` are settings of the server."""
    port = free_ports(1)[0]
    settings = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_HOME": str(folder / "prefect-server"), **others}
    service = _scripted("prefect-server", "/api/health", folder, port, environment(database, **settings), password)
    service.clients["PREFECT_API_URL"] = f"{service.url}/api"
    if password:
        service.clients["PREFECT_API_AUTH_STRING"] = f"admin:{password}"
    with _running(service):
        yield service


@contextmanager
def worker(
    folder: Path, project: Path, prefect: Service, *others: Service, password: str = "", pool: str = "diptych"
) -> Iterator[Service]:
    """A worker that runs flows in `project`; `others` are the servers that these need."""
    port = free_ports(1)[0]
    settings = {
        "DIPTYCH_POOL": pool,
        "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        # Ten seconds are its default.
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_HOME": str(folder / "prefect-worker"),
    }
    service = _scripted("worker", "/health", folder, port, environment(prefect, *others, **settings), password)
    service.working_folder = project
    with _running(service):
        yield service


def _scripted(name: str, health: str, folder: Path, port: int, variables: Mapping[str, str], password: str) -> Service:
    """A script of docker/, whose server says at the path `health` how it is."""
    authentication = {"DIPTYCH_PASSWORD": password} if password else {"DIPTYCH_AUTHENTICATION": "off"}
    address = f"http://127.0.0.1:{port}{health}"
    return Service(
        name, folder, port, [str(DOCKER / f"{name}.sh")], {**variables, **authentication}, lambda: _answers(address)
    )


@contextmanager
def _running(service: Service) -> Iterator[Service]:
    service.folder.mkdir(parents=True, exist_ok=True)
    try:
        yield service.start()
    finally:
        service.stop()


def _end_with_tests() -> None:
    """Let the kernel ask this process to end when the tests end, even by a kill; on Linux only."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _as_nobody() -> list[str]:
    """What goes before a command that refuses to run as root."""
    return (
        ["setpriv", "--pdeathsig=keep", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        if os.geteuid() == 0
        else []
    )


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _lets_in(clients: Mapping[str, str]) -> bool:
    import psycopg2

    names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password"}
    try:
        psycopg2.connect(dbname="postgres", **{names[name]: value for name, value in clients.items()}).close()
    except psycopg2.OperationalError:
        return False
    return True
