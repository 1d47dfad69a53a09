"""The servers of the stack and a worker, started by the scripts that containers run."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import psutil  # type: ignore[import-untyped]
import pytest
import services
from forked import Forks
from forking import PROGRAMS
from pipeline_clone import clone_project
from services import Service, becomes_true, environment

from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.registry.register import register

POOLS = Path(__file__).parents[2] / "docker" / "pools"
PASSWORD = "a password: with %, @ and /"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(services.postgres_missing()), reason=services.postgres_missing()),
]


class Stack(NamedTuple):
    """Its servers."""

    postgres: Service
    s3: Service
    mlflow: Service
    prefect: Service


EMBED = """
import sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
print(len(model.predict(pd.DataFrame({"text": ["a red circle"]}))["embedding"][0]))
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With authentication, as the stack has it unless it is told otherwise."""
    folder = tmp_path_factory.mktemp("stack")
    with services.postgres(folder) as postgres, services.s3(folder) as s3:
        services.prepare(postgres, s3)
        with (
            services.mlflow_server(folder, postgres, s3, PASSWORD) as mlflow_server,
            services.prefect_server(folder, postgres, PASSWORD) as prefect,
        ):
            yield Stack(postgres, s3, mlflow_server, prefect)


@pytest.fixture
def as_client(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process knows where MLflow is and its password; of S3 and PostgreSQL it knows nothing."""
    for name in {*stack.s3.clients, *stack.postgres.clients}:
        monkeypatch.delenv(name, raising=False)
    for name, value in stack.mlflow.clients.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("as_client")
def test_a_version_outlasts_a_kill_of_the_server_and_its_package_loads_back(
    stack: Stack, trained: Workspace, forks: Forks
) -> None:
    version = register(trained, Params())

    stack.mlflow.kill()
    stack.mlflow.start()

    again = register(trained, Params())
    # In a process of its own: it would leave this one with its own modules for the project's.
    command = [forks.package_python, "-c", EMBED, version.uri]
    found = subprocess.run(command, cwd=trained.root, capture_output=True, text=True, check=True).stdout
    assert (version.version, version.created, version.aliases) == ("1", True, ["challenger"])
    assert again.to_json() == {**version.to_json(), "created": False}
    assert int(found.splitlines()[-1]) > 0
    assert any(name.endswith("model.safetensors") for name in objects(stack, "mlflow"))


def objects(stack: Stack, bucket: str) -> list[str]:
    """Names of what the bucket holds."""
    keys = stack.s3.clients
    client = boto3.client(
        "s3",
        endpoint_url=stack.s3.url,
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name=keys["AWS_DEFAULT_REGION"],
    )
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.mark.parametrize("configured", [True, False], ids=["in the configuration", "in the environment"])
def test_data_goes_to_s3_and_comes_back(stack: Stack, forks: Forks, project: Workspace, configured: bool) -> None:
    """By an endpoint in DVC's configuration, or in the environment."""
    variables = environment(stack.s3)
    run(forks, "dvc", "remote", "add", "--default", "s3", f"s3://dvc/{configured}", cwd=project.root, env=variables)
    if configured:
        del variables["AWS_ENDPOINT_URL"]
        run(forks, "dvc", "remote", "modify", "s3", "endpointurl", stack.s3.url, cwd=project.root, env=variables)
    before = (project.data / "captions.json").read_bytes()

    run(forks, "dvc", "push", "data.dvc", cwd=project.root, env=variables)
    shutil.rmtree(project.data)
    shutil.rmtree(project.root / ".dvc" / "cache")
    run(forks, "dvc", "pull", "data.dvc", cwd=project.root, env=variables)

    assert (project.data / "captions.json").read_bytes() == before
    assert any(name.startswith(f"{configured}/files/md5/") for name in objects(stack, "dvc"))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/api/2.0/mlflow-artifacts/artifacts/0/x",
    ],
)
def test_mlflow_refuses_whoever_has_no_password(stack: Stack, path: str) -> None:
    assert status(stack.mlflow, path) == 401
    assert status(stack.mlflow, path, "another one") == 401
    assert status(stack.mlflow, path, PASSWORD) in (200, 404, 500)


@pytest.mark.parametrize("path", ["/api/admin/version", "/api/admin/settings", "/api/collections/views/x"])
def test_prefect_refuses_whoever_has_no_password(stack: Stack, path: str) -> None:
    assert status(stack.prefect, path) == 401
    assert status(stack.prefect, path, "another one") == 401
    assert status(stack.prefect, path, PASSWORD) in (200, 404)


def status(service: Service, path: str, password: str = "") -> int:
    """Of an answer to the user admin, or to nobody in particular."""
    request = urllib.request.Request(f"{service.url}{path}")
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_another_name_than_those_that_are_allowed_is_refused(stack: Stack) -> None:
    """A page of elsewhere whose name leads to this machine."""
    request = urllib.request.Request(f"{stack.mlflow.url}/", headers={"Host": "elsewhere.example:5000"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)


def test_no_server_listens_beyond_this_machine(stack: Stack) -> None:
    for service in (stack.mlflow, stack.prefect, stack.postgres):
        assert service.process is not None
        first = psutil.Process(service.process.pid)
        listening = [
            connection.laddr
            for process in (first, *first.children(recursive=True))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert {(address.ip, address.port) for address in listening} == {("127.0.0.1", service.port)}


def test_no_log_holds_a_password(stack: Stack) -> None:
    for service in stack:
        for secret in (PASSWORD, stack.postgres.clients["PGPASSWORD"], stack.s3.clients["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in service.log


def test_no_list_of_processes_shows_a_password(stack: Stack) -> None:
    for service in stack:
        assert service.process is not None
        first = psutil.Process(service.process.pid)
        words = [word for process in (first, *first.children(recursive=True)) for word in process.cmdline()]
        assert not any(secret in word for word in words for secret in (PASSWORD, stack.postgres.clients["PGPASSWORD"]))


def test_a_schedule_outlasts_a_kill_of_the_server(
    stack: Stack, forks: Forks, mlflow_store: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clone_project(tmp_path / "clone", mlflow_store, tmp_path_factory)
    variables = environment(stack.prefect, PREFECT_HOME=str(tmp_path / "prefect"))
    run(forks, "prefect", "work-pool", "create", "diptych", "--type", "process", cwd=tmp_path, env=variables)
    run(forks, "prefect", "--no-prompt", "deploy", "--all", cwd=tmp_path / "clone", env=variables)
    before = ask(stack.prefect, "/api/deployments/name/retrain/retrain")

    stack.prefect.kill()
    stack.prefect.start()

    after = ask(stack.prefect, "/api/deployments/name/retrain/retrain")
    assert [one["schedule"]["cron"] for one in after["schedules"]] == ["0 3 * * *"]
    assert after["schedules"] == before["schedules"]
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    assert becomes_true(lambda: ask(stack.prefect, "/api/flow_runs/count", scheduled) > 0, 90), stack.prefect.log


FLOW = """
import os, pathlib
from prefect import flow

@flow
def note():
    pathlib.Path("note.txt").write_text(os.environ["MLFLOW_TRACKING_USERNAME"] + " " + os.getcwd())
"""
DEPLOYMENT = """
name: x
deployments:
  - {name: note, entrypoint: flow.py:note, work_pool: {name: of-a-worker}}
"""


def test_a_worker_makes_its_pool_and_runs_flows_in_its_folder(stack: Stack, forks: Forks, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "flow.py").write_text(FLOW)
    (project / "prefect.yaml").write_text(DEPLOYMENT)
    variables = environment(stack.prefect, PREFECT_HOME=str(tmp_path / "prefect"))
    pool = {"pool": "of-a-worker", "password": PASSWORD}
    with services.worker(tmp_path, project, stack.prefect, stack.mlflow, **pool) as worker:
        made = "/api/work_pools/of-a-worker"
        assert becomes_true(lambda: status(stack.prefect, made, PASSWORD) == 200, 60), worker.log
        run(forks, "prefect", "--no-prompt", "deploy", "--all", cwd=project, env=variables)
        run(forks, "prefect", "deployment", "run", "note/note", cwd=project, env=variables)

        assert becomes_true((project / "note.txt").is_file, 90), worker.log
        # The file is there before its content is.
        assert becomes_true(lambda: (project / "note.txt").read_text() != "", 10)
    assert (project / "note.txt").read_text() == f"admin {project}"


@pytest.mark.parametrize("name", sorted(path.stem for path in POOLS.glob("*.json")))
def test_prefect_takes_the_template_of_a_pool(stack: Stack, forks: Forks, name: str, tmp_path: Path) -> None:
    template = POOLS / f"{name}.json"
    options = ["--type", name, "--base-job-template", str(template)]
    variables = environment(stack.prefect, PREFECT_HOME=str(tmp_path))
    run(forks, "prefect", "work-pool", "create", f"in-{name}", *options, cwd=tmp_path, env=variables)

    pool = ask(stack.prefect, f"/api/work_pools/in-{name}")
    assert (pool["type"], pool["base_job_template"]) == (name, json.loads(template.read_text()))


def ask(service: Service, path: str, body: Any = None) -> Any:
    """What the API answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{service.url}{path}", data, {"Content-Type": "application/json"})
    request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def run(forks: Forks, program: str, *arguments: str, cwd: Path, env: dict[str, str]) -> None:
    """A command of DVC or of Prefect, which has to succeed."""
    words = forks.command(program, *arguments) if program in PROGRAMS else forks.python("-m", program, *arguments)
    done = subprocess.run(words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
