"""The train stage by Ray Train, on two nodes of this machine."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from ray_nodes import joined, nodes
from tiny import model_settings, train_settings, write_prepared
from waiting import comes_true

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.model.package import weights_sha256
from diptych.project.workspace import Workspace
from diptych.stages import train_in_cluster

pytestmark = pytest.mark.slow
__all__ = ["joined", "nodes"]


@pytest.fixture
def workspace(tmp_path: Path, mlflow_store: Path) -> Workspace:
    """A project that is to be trained."""
    made = Workspace(tmp_path / "workspace")
    write_prepared(made.prepared)
    (made.prepared / "tokenizer").rename(made.tokenizer)
    made.local.mkdir()
    shutil.copy(mlflow_store, made.local / "mlflow.db")
    settings = train_settings(launch=["ray"], epochs=3, checkpoint_every=1)
    params = Params(model=model_settings(), train=settings, threads=1, device="cpu")
    made.params.write_text(json.dumps(params.model_dump(by_alias=True)))
    return made


def trained(workspace: Workspace) -> str:
    """Train the project; return the SHA-256 of its weights."""
    params = Params(**json.loads(workspace.params.read_text()))
    train_in_cluster.run(workspace, params)
    return weights_sha256(workspace.model)


def kill_a_worker(workspace: Workspace, killed: list[int]) -> None:
    """Kill a process that trains once there is a checkpoint."""
    assert comes_true(lambda: any((workspace.local / "checkpoints").glob("*/state.pt")))
    for process in psutil.process_iter(["cmdline", "cwd"]):
        # Others of this machine may train by Ray as well.
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or []) and process.info["cwd"] == str(workspace.root):
            process.kill()
            killed.append(process.pid)
            return


def test_a_training_that_loses_a_process_ends_with_the_same_weights(
    joined: Any, workspace: Workspace, tmp_path: Path
) -> None:
    other = Workspace(shutil.copytree(workspace.root, tmp_path / "other"))
    undisturbed = trained(workspace)
    assert list((workspace.local / "checkpoints").iterdir()) == []
    assert not (workspace.local / "ray-train").exists()

    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(other, killed))
    killer.start()
    assert trained(other) == undisturbed
    killer.join()
    assert len(killed) == 1
    with closing(sqlite3.connect(other.local / "mlflow.db")) as database:
        started = database.execute("SELECT count(*) FROM runs").fetchone()
    assert started == (1,)


@pytest.mark.parametrize(
    ("workers", "message"),
    [("two", "DIPTYCH_WORKERS is 'two'"), ("99", "DIPTYCH_WORKERS is 99, and the cluster has room for 4")],
)
def test_as_many_processes_as_there_is_room_for(
    joined: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, workers: str, message: str
) -> None:
    monkeypatch.setenv("DIPTYCH_WORKERS", workers)
    with pytest.raises(DiptychError, match=message):
        trained(workspace)


def test_what_goes_wrong_in_a_process_is_told(
    joined: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_WORKERS", "1")
    # Each try starts the process anew, which takes seconds.
    monkeypatch.setattr(train_in_cluster, "TRIES", 1)
    shutil.rmtree(workspace.tokenizer)
    with pytest.raises(DiptychError, match=r"The training by Ray failed: .*tokenizer"):
        trained(workspace)


def test_a_cluster_is_needed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(DiptychError, match="RAY_ADDRESS names no cluster"):
        trained(workspace)
