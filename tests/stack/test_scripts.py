"""What the scripts of docker/ start, in what environment; programs that only tell so stand in for the servers."""

from __future__ import annotations

import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[2] / "docker"
ON = {"DIPTYCH_PASSWORD": "a long password", "MLFLOW_FLASK_SERVER_SECRET_KEY": "x", "PREFECT_API_URL": "http://x/api"}
SERVERS = ["mlflow-server.sh", "prefect-server.sh", "worker.sh", "search.sh"]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs that write down their arguments and environment."""
    for name in ("mlflow", "prefect", "uv", "diptych", "ray"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text('#!/bin/sh\necho "ARGUMENTS=$(basename "$0") $*"\nenv\n')
        program.chmod(0o755)
    return tmp_path / "bin"


def started(programs: Path, script: str, *arguments: str, **variables: str) -> tuple[int, dict[str, str], str]:
    """Exit code, what was started with its environment, and what was said on stderr."""
    path = os.pathsep.join([str(programs), os.defpath])
    command = [str(DOCKER / script), *arguments]
    done = subprocess.run(command, env={"PATH": path, **variables}, capture_output=True, text=True, cwd=DOCKER.parent)
    lines = [line.partition("=") for line in done.stdout.splitlines()]
    return done.returncode, {name: value for name, _, value in lines}, done.stderr


@pytest.mark.parametrize("script", SERVERS)
def test_authentication_is_on_unless_it_is_switched_off(programs: Path, script: str) -> None:
    code, said, errors = started(programs, script, **ON | {"DIPTYCH_PASSWORD": ""})

    assert code != 0
    assert said == {}
    assert "DIPTYCH_PASSWORD: is empty. Set it, or DIPTYCH_AUTHENTICATION=off" in errors


@pytest.mark.parametrize("script", SERVERS)
def test_the_switch_has_two_positions(programs: Path, script: str) -> None:
    code, said, errors = started(programs, script, **ON, DIPTYCH_AUTHENTICATION="maybe")

    assert (code, said) == (2, {})
    assert "DIPTYCH_AUTHENTICATION is 'maybe'; it may be on or off." in errors


def test_with_authentication_the_servers_and_the_worker_have_the_password(programs: Path) -> None:
    _, mlflow, _ = started(programs, "mlflow-server.sh", **ON)
    _, prefect, _ = started(programs, "prefect-server.sh", **ON)
    _, worker, _ = started(programs, "worker.sh", **ON)

    assert mlflow["ARGUMENTS"] == "mlflow server --app-name basic-auth"
    assert (mlflow["MLFLOW_AUTH_ADMIN_USERNAME"], mlflow["MLFLOW_AUTH_ADMIN_PASSWORD"]) == ("admin", "a long password")
    assert prefect["PREFECT_SERVER_API_AUTH_STRING"] == "admin:a long password"
    assert worker["PREFECT_API_AUTH_STRING"] == prefect["PREFECT_SERVER_API_AUTH_STRING"]
    assert (worker["MLFLOW_TRACKING_USERNAME"], worker["MLFLOW_TRACKING_PASSWORD"]) == ("admin", "a long password")


def test_without_authentication_nobody_has_a_password(programs: Path) -> None:
    for script in SERVERS:
        code, said, _ = started(programs, script, **ON, DIPTYCH_AUTHENTICATION="off")
        assert code == 0
        assert "basic-auth" not in said["ARGUMENTS"]
        assert "a long password" not in said.values()
        assert not any("AUTH_STRING" in name or name.startswith("MLFLOW_TRACKING_P") for name in said)


def test_no_server_is_told_to_listen_beyond_this_machine(programs: Path) -> None:
    """Their own default is 127.0.0.1, which tests/stack/test_servers.py looks at."""
    for script in SERVERS:
        _, said, _ = started(programs, script, **ON)
        assert "0.0.0.0" not in " ".join(said.values())
        assert "--host" not in said["ARGUMENTS"]


def test_mlflow_keeps_everything_in_postgresql_and_s3(programs: Path) -> None:
    _, said, _ = started(programs, "mlflow-server.sh", **ON)

    assert said["MLFLOW_BACKEND_STORE_URI"] == "postgresql:///mlflow"
    assert said["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://mlflow"
    assert "postgresql:///mlflow_auth" in Path(said["MLFLOW_AUTH_CONFIG_PATH"]).read_text()


def test_prefect_keeps_everything_in_postgresql_and_its_leases_on_the_disk(programs: Path) -> None:
    _, said, _ = started(programs, "prefect-server.sh", **ON)

    assert said["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg:///prefect"
    assert said["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")


def test_a_worker_takes_one_run_more_than_can_work_from_the_pool_it_is_given(programs: Path) -> None:
    for pool, variables in (("diptych", {}), ("other", {"DIPTYCH_POOL": "other"})):
        _, said, _ = started(programs, "worker.sh", **ON, **variables)
        words = said["ARGUMENTS"].split()
        assert words[:3] == ["prefect", "worker", "start"]
        assert ("--pool", pool) in pairwise(words)
        assert ("--limit", "2") in pairwise(words)


@pytest.mark.parametrize(("variables", "token"), [({}, "a long password"), ({"DIPTYCH_AUTHENTICATION": "off"}, None)])
def test_the_search_page_asks_for_the_password_where_authentication_is_on(
    programs: Path, variables: dict[str, str], token: str | None
) -> None:
    _, said, _ = started(programs, "search.sh", **ON, **variables)
    assert said["ARGUMENTS"] == "diptych serve --wait --collection dataset --port 8080"
    assert said.get("DIPTYCH_SEARCH_TOKEN") == token


def test_the_search_page_listens_where_it_is_told(programs: Path) -> None:
    _, said, _ = started(programs, "search.sh", **ON, DIPTYCH_SEARCH_HOST="0.0.0.0", DIPTYCH_COLLECTION="shop")
    assert said["ARGUMENTS"] == "diptych serve --wait --collection shop --port 8080 --host 0.0.0.0"


def test_a_command_is_run_as_a_client_of_the_servers(programs: Path) -> None:
    _, said, _ = started(programs, "as-client.sh", "prefect", "deploy", "--all", **ON)

    assert said["ARGUMENTS"] == "prefect deploy --all"
    assert said["PREFECT_API_AUTH_STRING"] == "admin:a long password"


def test_a_worker_needs_a_server(programs: Path) -> None:
    code, _, errors = started(programs, "worker.sh", **ON | {"PREFECT_API_URL": ""})

    assert code != 0
    assert "PREFECT_API_URL: is empty" in errors


def test_the_image_has_the_packages_of_the_lock(programs: Path) -> None:
    _, said, _ = started(programs, "install-packages.sh")

    assert said["ARGUMENTS"].endswith("--constraint requirements.lock")
    assert "UV_TORCH_BACKEND" not in said


@pytest.mark.slow
def test_torch_for_another_device_has_the_version_of_the_lock_and_no_hash(programs: Path, tmp_path: Path) -> None:
    _, said, _ = started(programs, "install-packages.sh", TORCH_BACKEND="cpu", TMPDIR=str(tmp_path))

    locked = (DOCKER.parent / "requirements.lock").read_text()
    constraints = Path(said["ARGUMENTS"].split()[-1]).read_text()
    assert said["UV_TORCH_BACKEND"] == "cpu"
    changed = [one for one in constraints.split("\n") if one not in locked.split("\n")]
    assert [one.partition("==")[0] for one in changed] == ["torch", "torchvision"]
    assert all(f"{one} \\" in locked for one in changed)
    assert constraints.count("--hash") < locked.count("--hash")


def test_the_worker_becomes_a_node_of_the_cluster_that_is_named(programs: Path) -> None:
    code, _, errors = started(programs, "worker.sh", **ON, RAY_ADDRESS="head:6379")
    assert code == 0
    assert "ARGUMENTS=ray start --address=head:6379 --num-cpus=0" in errors
    assert "ray start" not in started(programs, "worker.sh", **ON)[2]
