"""The deployment on a real Prefect server with a real worker: what is scheduled runs, and what dies frees its place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import UUID

import pytest
from fake_project import keep_environment
from forked import Forks
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State
from prefect.states import Failed
from prefect_server import prefect_home, used
from services import PATIENCE, Service, becomes_true
from sharing import free_ports
from tiny_model import write_reports, write_tiny_model
from waiting import dies

from diptych.orchestration import automations, schedules
from diptych.orchestration.deployment import RETRAIN, deploy
from diptych.project.workspace import Workspace

ROOT = Path(__file__).parents[2]
WAITING = ["AwaitingConcurrencySlot"]
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    """A Prefect server of these tests' own, and what to look into it with."""

    address: str
    service: Service
    client: SyncPrefectClient

    def trigger(self, times: int = 1) -> list[UUID]:
        deployment = self.client.read_deployment_by_name(RETRAIN).id
        # Its stages compute nothing that could be judged.
        parameters = {"promotion": "never"}
        runs = [self.client.create_flow_run_from_deployment(deployment, parameters=parameters) for _ in range(times)]
        return [run.id for run in runs]

    def states(self, runs: list[UUID]) -> list[State]:
        found = self.client.read_flow_runs(flow_run_filter=FlowRunFilter(id={"any_": runs}))
        return [run.state for run in found if run.state is not None]

    def names(self, runs: list[UUID]) -> list[str]:
        """Of their states, sorted."""
        return sorted(state.name or "" for state in self.states(runs))

    def scheduled(self) -> int:
        runs = self.client.read_flow_runs(flow_run_filter=FlowRunFilter(state={"type": {"any_": ["SCHEDULED"]}}))
        return sum(run.auto_scheduled for run in runs)


@pytest.fixture(scope="module")
def server(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With nothing on it; who waits for a place looks every ten seconds, not every thirty."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(prefect_home(tmp_path_factory), folder / "prefect")
    port = free_ports(1)[0]
    address = f"http://127.0.0.1:{port}/api"
    with pytest.MonkeyPatch.context() as patch, used(address):
        keep_environment(patch)
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        patch.setenv("PREFECT_API_URL", address)
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS", "10")
        patch.setenv("PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS", "5")
        patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
        # Workers take runs so long before their time: those who wait shorter are asked again without end.
        patch.setenv("PREFECT_WORKER_PREFETCH_SECONDS", "1")
        command = forks.python("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        service = Service("prefect", folder, port, command, dict(os.environ), lambda: answers(address))
        with get_client(sync_client=True) as client:
            try:
                service.start()
                yield Server(address, service, client)
            finally:
                service.stop()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages of the fake project hand out."""
    folder = tmp_path_factory.mktemp("results")
    write_tiny_model(folder / "trained")
    write_reports(folder / "trained-reports")
    return folder


@pytest.fixture
def runnable(
    server: Server, project: Workspace, results: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workspace]:
    """A project with the flow and prefect.yaml, to be deployed on the server."""
    shutil.copytree(results, project.root, dirs_exist_ok=True)
    shutil.copytree(ROOT / "flows", project.root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", project.root)
    project.local.mkdir()
    shutil.copy(mlflow_store, project.local / "mlflow.db")
    monkeypatch.setenv("PREFECT_API_URL", server.address)
    yield project
    if (project.root / "sleeping").exists():
        kill_run(project)
    server.client.delete_deployment(server.client.read_deployment_by_name(RETRAIN).id)


@pytest.fixture
def worker(server: Server, tmp_path: Path, forks: Forks) -> Iterator[Service]:
    """Not started yet, and in a folder that has nothing to do with the project; its runs sleep in `train`."""
    (tmp_path / "elsewhere").mkdir()
    command = forks.python("-m", "prefect", "worker", "start", "--pool", "diptych", "--limit", "2")
    environment = {**os.environ, **forks.everywhere(), "SLEEP": "train"}
    one = Service("worker", tmp_path / "elsewhere", 0, command, environment, lambda: True)
    yield one
    one.kill()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def is_training(project: Workspace) -> Callable[[], bool]:
    """Whether a run has got to the stage that sleeps."""
    return (project.root / "sleeping").exists


def kill_run(project: Workspace) -> None:
    """The process of the run that holds the project, and its stage that sleeps, by kill -9."""
    sleeping = project.root / "sleeping"
    holder = int(json.loads((project.local / "holder.json").read_text())["pid"])
    for process in (holder, int(sleeping.read_text())):
        # A worker that was killed took them along.
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert dies(holder)
    sleeping.unlink()


def test_of_several_triggers_one_trains_and_the_others_end_with_the_reason(
    server: Server, runnable: Workspace, worker: Service
) -> None:
    deploy(runnable, when_busy="skip")
    # None by schedule may come between.
    schedules.pause_schedule()
    worker.start()
    runs = server.trigger(4)
    assert becomes_true(is_training(runnable), PATIENCE), worker.log[-5000:]
    assert becomes_true(lambda: server.names(runs).count("Cancelled") == 3, PATIENCE), worker.log[-5000:]

    (runnable.root / "sleeping").unlink()

    assert becomes_true(lambda: server.names(runs) == ["Cancelled"] * 3 + ["Completed"], PATIENCE), worker.log[-5000:]
    reasons = {state.message for state in server.states(runs) if state.is_cancelled()}
    assert reasons == {"Deployment concurrency limit reached."}
    assert (runnable.root / "ran.txt").read_text().split().count("train") == 1


def test_others_wait_and_a_run_that_is_killed_frees_its_place_even_with_its_worker(
    server: Server, runnable: Workspace, worker: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than there is between two signs of life: here none comes after the first.
    monkeypatch.setattr(automations, "SILENCE", 25)
    deploy(runnable)
    schedules.pause_schedule()
    worker.start()
    runs = server.trigger(3)
    assert becomes_true(is_training(runnable), PATIENCE), worker.log[-5000:]
    assert becomes_true(lambda: server.names(runs) == [*WAITING, *WAITING, "Running"], PATIENCE), worker.log[-5000:]

    kill_run(runnable)

    assert becomes_true(is_training(runnable), PATIENCE), worker.log[-5000:]
    assert server.names(runs) == [*WAITING, "Crashed", "Running"]

    worker.kill()
    kill_run(runnable)

    assert becomes_true(lambda: server.names(runs).count("Crashed") == 2, PATIENCE), server.service.log[-5000:]
    assert any("No sign of life" in (state.message or "") for state in server.states(runs))
    limit = server.client.read_deployment_by_name(RETRAIN).global_concurrency_limit
    assert limit is not None
    assert limit.active_slots == 0


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a chat of this test's own, and what was said in it."""
    said: list[dict[str, str]] = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as chat:
        thread = Thread(target=chat.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{chat.server_port}/", said
        chat.shutdown()
        thread.join()


def test_people_are_told_of_failed_runs_and_of_models(
    server: Server, runnable: Workspace, told: tuple[str, list[dict[str, str]]]
) -> None:
    address, said = told
    template = {"subject": "{{subject}}", "body": "{{body}}"}
    CustomWebhookNotificationBlock(name="chat", url=address, json_data=template).save("chat", overwrite=True)
    deploy(runnable, notify="custom-webhook/chat")
    (run,) = server.trigger()
    server.client.set_flow_run_state(run, Failed(message="stage train failed: it broke"), force=True)
    automations.announce("rejected", "diptych", "7", "RSUM 300.0 is 12.0 below the champion's")
    automations.announce("promoted", "diptych", "8", "RSUM 320.0 is 8.0 above the champion's")

    assert becomes_true(lambda: len(said) == 3, PATIENCE), server.service.log[-5000:]

    bodies = {one["subject"].removeprefix("diptych: "): one["body"] for one in said}
    assert bodies["diptych 7 was rejected"] == "RSUM 300.0 is 12.0 below the champion's"
    assert bodies["diptych 8 was promoted"] == "RSUM 320.0 is 8.0 above the champion's"
    (failed,) = (subject for subject in bodies if subject.startswith("the run"))
    assert failed.endswith("has ended as Failed")
    assert bodies[failed].startswith("stage train failed: it broke\n")
    assert str(run) in bodies[failed]


def test_schedules_outlast_restarts_of_server_and_worker(server: Server, runnable: Workspace, worker: Service) -> None:
    deploy(runnable)
    worker.start()
    schedules.set_schedule("0 5 * * 1", "Europe/Berlin")
    schedules.pause_schedule()
    server.service.restart()
    worker.kill()
    worker.start()

    assert schedules.read_schedule().rules == ["0 5 * * 1 (Europe/Berlin)"]
    assert schedules.read_schedule().paused
    schedules.resume_schedule()

    assert becomes_true(lambda: server.scheduled() > 0, PATIENCE), server.service.log[-5000:]
