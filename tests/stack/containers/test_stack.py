"""The stack in containers: deployed, killed piece by piece, cut off, restored and upgraded.

Each test goes on from where the one before it ended. `make test` leaves this folder out: the image takes minutes and
20 GB. `make test-stack` runs it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import containers
import pytest
from containers import DEBIAN, DOCKER, NAME, SERVICES, Stack, comes_true, docker, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(containers.engine_missing()), reason=containers.engine_missing()),
]
LOAD = """
from diptych.retriever import Retriever
print(Retriever.load("models:/diptych-tiny@champion").encode_texts(["a red circle"]).embedding.shape)
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With a checkout for its worker, in which nothing has run."""
    run(str(DOCKER / "testing" / "base-images.sh"))
    made = Stack(tmp_path_factory.mktemp("stack"))
    check_out(made.project)
    made.compose("build", "worker")
    with made.running() as running:
        yield running


def check_out(folder: Path) -> None:
    """What git tracks and new files, with the preset tiny in force, committed."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if (containers.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(containers.ROOT / name, folder / name)
    shutil.copy(folder / "presets/tiny.yaml", folder / "params.yaml")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "checkout"]):
        run("git", "-c", "user.name=x", "-c", "user.email=x@localhost", *command, cwd=folder)
    if os.geteuid() == 0:
        run("chown", "-R", "1000:1000", str(folder))


def champion(stack: Stack) -> str:
    """The number of the version in use, as the worker sees it."""
    return str(json.loads(stack.client("diptych", "champion", "--json"))["version"])


def assert_nothing_is_lost(stack: Stack, version: str) -> None:
    """The registry has the version and its package, Prefect its deployment, and the page finds images."""
    assert champion(stack) == version
    assert "(1, 32)" in stack.client("python", "-c", LOAD)
    assert stack.prefect("deployments/name/retrain/retrain")["work_pool_name"] == "diptych"
    assert comes_true(lambda: found(stack) == 5, 60)


def found(stack: Stack) -> int:
    """How many images a search finds; 0 while nothing is served."""
    try:
        return len(stack.search("a red circle")["results"])
    except OSError:
        return 0


def test_no_container_of_the_image_runs_as_root_or_may_become_it(stack: Stack) -> None:
    for name in ("mlflow", "prefect", "worker", "search"):
        assert stack.compose("exec", "-T", name, "id", "-u").strip() != "0"
        status = stack.compose("exec", "-T", name, "cat", "/proc/self/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status


def test_a_schedule_leads_to_a_promoted_version_that_is_searched(stack: Stack) -> None:
    stack.client("diptych", "data", "scenes", "--train", "60", "--val", "20", "--test", "20")
    stack.client("dvc", "remote", "add", "--default", "storage", "s3://dvc")
    stack.client("diptych", "deploy")
    stack.client("diptych", "schedule", "set", "*/2 * * * *")

    done = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    completed = comes_true(lambda: stack.prefect("flow_runs/count", done) > 0, 900)
    stack.client("diptych", "schedule", "pause")
    assert completed, stack.compose("logs", "--tail=200", "worker")

    (scheduled, *_) = stack.prefect("flow_runs/filter", done)
    assert scheduled["auto_scheduled"]
    stack.client("diptych", "index")
    assert_nothing_is_lost(stack, "1")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_that_is_killed_comes_back_with_what_it_had(stack: Stack, name: str) -> None:
    stack.kill(name)

    stack.wait_until_healthy()
    assert_nothing_is_lost(stack, champion(stack))


def test_a_run_whose_worker_is_killed_crashes_and_the_next_one_completes(stack: Stack) -> None:
    broken = stack.trigger(force=True)
    assert comes_true(lambda: stack.works_at(broken, "train")), stack.log(broken)
    stack.kill("worker")

    assert stack.ends(broken) == "Crashed"
    stack.wait_until_healthy("worker")
    following = stack.trigger()
    assert stack.ends(following) == "Completed", stack.log(following)


def unplug(stack: Stack, seconds: int) -> None:
    """Take the worker off the network of the stack, which it notices at once."""
    worker = stack.container("worker")
    docker("network", "disconnect", f"{NAME}_default", worker)
    run("sleep", str(seconds))
    docker("network", "connect", "--alias", "worker", f"{NAME}_default", worker)


def silence(stack: Stack, seconds: int) -> None:
    """Drop what the worker is sent, so that its requests get no answer at all."""
    rule = "INPUT -i eth0 -j DROP"
    script = f"iptables -A {rule}; sleep {seconds}; iptables -D {rule}"
    worker = f"--network=container:{stack.container('worker')}"
    docker("run", "--rm", worker, "--cap-add=NET_ADMIN", DEBIAN, "sh", "-euc", script)


@pytest.mark.parametrize("cut", [unplug, silence])
def test_a_run_outlasts_a_minute_without_the_servers(stack: Stack, cut) -> None:
    cut_off = stack.trigger(force=True)
    assert comes_true(lambda: stack.works_at(cut_off, "train")), stack.log(cut_off)

    cut(stack, 60)

    assert stack.ends(cut_off) == "Completed", stack.log(cut_off)
    assert_nothing_is_lost(stack, champion(stack))


def test_a_backup_leads_back_into_an_empty_stack(stack: Stack, tmp_path: Path) -> None:
    version = champion(stack)

    stack.documented("Backups", 0, tmp_path)
    stack.compose("down", "--volumes")
    stack.documented("Backups", 1, tmp_path)

    stack.wait_until_healthy()
    assert_nothing_is_lost(stack, version)
    following = stack.trigger(force=True)
    assert stack.ends(following) == "Completed", stack.log(following)


def test_an_upgrade_to_a_later_mlflow_keeps_what_is_stored(stack: Stack, tmp_path: Path, monkeypatch) -> None:
    version = champion(stack)
    later, testing = f"{NAME}/later:latest", str(DOCKER / "testing")
    docker("build", "--network=host", f"--tag={later}", f"--file={testing}/later.Dockerfile", testing)
    monkeypatch.setenv("DIPTYCH_IMAGE", later)

    stack.documented("Upgrades", 0, tmp_path)

    assert "/opt/later" in stack.client("python", "-c", "import mlflow; print(mlflow.__file__)")
    assert_nothing_is_lost(stack, version)
