"""A Prefect server of the tests' own, and a project to deploy on it."""

import shutil
from pathlib import Path
from ssl import SSLContext

import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect_server import prefect_server
from sharing import made_once

from diptych.orchestration import deployment, server

ROOT = Path(__file__).parents[2]
NIGHTLY = CronSchedule(cron="0 3 * * *", timezone="UTC")


@pytest.fixture(scope="module")
def address(heavy, tmp_path_factory):
    """Address of the tests' server, on which one module at a time deploys."""
    folder = made_once(tmp_path_factory, "deploying", lambda folder: None)
    with FileLock(folder / "lock"), prefect_server(tmp_path_factory) as address:
        yield address


@pytest.fixture
def client(address, monkeypatch):
    """A client of the server, with nothing on it."""
    monkeypatch.setenv("PREFECT_API_URL", address)
    # Whether this server answers is asked once, not before each of its uses; and it has no certificate to check.
    ask = server._ask  # noqa: SLF001
    monkeypatch.setattr(server, "_ask", lambda: None if server.address() == address else ask())
    monkeypatch.setattr(SSLContext, "load_verify_locations", lambda *arguments, **options: None)
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        yield client


@pytest.fixture
def workspace(project, monkeypatch, forks):
    """A project with the flow and prefect.yaml; it is the current folder."""
    monkeypatch.setattr(deployment, "_prefect", lambda *arguments: forks.python("-m", "prefect", *arguments))
    shutil.copytree(ROOT / "flows", project.root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", project.root)
    monkeypatch.chdir(project.root)
    return project


@pytest.fixture
def deployed(client):
    """The deployment, nightly, as if it had been deployed."""
    flow = client.create_flow_from_name("retrain")
    nightly = DeploymentScheduleCreate(schedule=NIGHTLY, active=True)
    client.create_deployment(flow_id=flow, name="retrain", entrypoint="flows/retrain.py:retrain", schedules=[nightly])
    return client
