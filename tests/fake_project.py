"""A project whose stages take no time, for the tests of the command, of DVC and of the flow: a pytest plugin."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from forked import Forks
from mlflow_engines import share_engines
from sharing import made_once

from diptych.config import Params
from diptych.project import dvc, environment
from diptych.project.pixels import READERS
from diptych.project.processes import HOLDER
from diptych.project.workspace import Workspace

CHAIN = """
stages:
  validate:
    cmd: exec python stage.py validate
    deps: [data, stage.py]
    outs: [reports/quarantine.csv, reports/validation.json]
  preprocess:
    cmd: exec python stage.py preprocess
    deps: [data]
    outs: [artifacts/prepared/images, artifacts/prepared/images.parquet]
  baselines:
    cmd: exec python stage.py baselines
    deps: [artifacts/prepared/images.parquet]
    outs: [artifacts/baselines.npz]
  train:
    cmd: exec python stage.py train
    deps: [artifacts/prepared/images.parquet]
    params: [seed]
    outs: [artifacts/model, reports/training.csv]
  controls:
    cmd: exec python stage.py controls
    deps: [artifacts/model]
    outs: [artifacts/controls.npz]
  evaluate:
    cmd: exec python stage.py evaluate
    deps: [artifacts/baselines.npz, artifacts/controls.npz, artifacts/model]
    outs: [reports/ladder.json, reports/report.html]
    metrics: [reports/baselines.json, reports/metrics.json]
"""
STAGE = """
import json, os, pathlib, shutil, sys, time
name, here = sys.argv[1], pathlib.Path()
with open("ran.txt", "a") as log: log.write(name + "\\n")
(here / "artifacts").mkdir(exist_ok=True)
(here / "reports").mkdir(exist_ok=True)
if os.environ.get("FAIL") == name:
    sys.exit("error: captions.json, row 3: it is broken\\n  mend it")
if os.environ.get("SLEEP") == name:
    note = here / "sleeping"
    note.with_suffix(".new").write_text(str(os.getpid()))
    note.with_suffix(".new").rename(note)
    # Until a test removes the note, or has been forgotten.
    for _ in range(1800):
        time.sleep(0.1 if note.exists() else 0)
if name == "validate":
    counts = {"total": 3, "accepted": 2, "quarantined": 1}
    failed = {"table": "images", "expectation": "unique", "column": "image_id", "success": False, "failed": 1}
    holds = {**failed, "success": True}
    (here / "reports/validation.json").write_text(
        json.dumps({"images": counts, "captions": counts, "expectations": [failed, holds], "failures": []})
    )
    (here / "reports/quarantine.csv").write_text("kind,id,file,reason\\n")
elif name == "preprocess":
    (here / "artifacts/prepared/images").mkdir(parents=True)
    (here / "artifacts/prepared/images/images-00000.npy").write_text("pixels")
    (here / "artifacts/prepared/images.parquet").write_text("prepared")
elif name in ("baselines", "controls"):
    (here / f"artifacts/{name}.npz").write_text(name)
elif name == "train":
    shutil.copytree("trained", here / "artifacts/model")
    shutil.copy("trained-reports/training.csv", here / "reports")
else:
    for file in ("metrics.json", "baselines.json", "ladder.json", "report.html"):
        shutil.copy(here / "trained-reports" / file, here / "reports")
"""
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
PARAMS = yaml.safe_dump(Params().model_dump(by_alias=True))
_FORKS: list[Forks] = []
IGNORED = "/data\n/artifacts\n/reports\n/trained*\n/.diptych\n/ran.txt\n/sleeping*\n"


def keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python's programs are found, and what `diptych` sets in its environment ends with `monkeypatch`."""
    for name in (HOLDER, "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    set_too = (
        "PATH",
        "PYTHONUTF8",
        "PREFECT_HOME",
        "PREFECT_API_URL",
        "NO_PROXY",
        "no_proxy",
        "TORCHINDUCTOR_CACHE_DIR",
    )
    for name in (*set_too, *environment.DEFAULTS):
        # Set and then deleted, so that monkeypatch knows the value to bring back, even if that is none.
        before = os.environ.get(name)
        monkeypatch.setenv(name, before or "")
        if before is None:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", PATH)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_environment(monkeypatch)


@pytest.fixture(scope="session")
def _forks(tmp_path_factory: pytest.TempPathFactory) -> Forks:
    _FORKS[:] = [Forks(tmp_path_factory)]
    return _FORKS[0]


@pytest.fixture(scope="session")
def forks(heavy: None, _forks: Forks) -> Forks:
    """Forks of any program, also of those that import torch."""
    return _forks


@pytest.fixture(autouse=True)
def _forked_dvc(_forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC is a process of its own, as always, but need not be imported by each."""
    monkeypatch.setattr(dvc, "_command", partial(_forks.command, "dvc"))
    monkeypatch.setattr(dvc, "_python", partial(_forks.command, "dvc"))


@pytest.fixture(scope="session")
def _project(tmp_path_factory: pytest.TempPathFactory, _forks: Forks) -> Path:
    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    (root / "dvc.yaml").write_text(CHAIN)
    (root / "stage.py").write_text(STAGE)
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text(IGNORED)
    (root / "data").mkdir()
    (root / "data" / "captions.json").write_text('{"info": {}, "images": [], "annotations": []}')
    run("git", "init", "--quiet", cwd=root)
    run("dvc", "init", "--quiet", cwd=root)
    run("dvc", "config", "core.analytics", "false", cwd=root)
    run("dvc", "add", "--quiet", "data", cwd=root)
    commit(root)
    return root


@pytest.fixture
def project(_project: Path, tmp_path: Path) -> Workspace:
    """A committed project with one file of data, and stages that take no time."""
    return Workspace(shutil.copytree(_project, tmp_path / "project"))


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without experiments, to copy: making its tables takes seconds."""

    def make(folder: Path) -> None:
        import mlflow

        mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    share_engines()
    return made_once(tmp_path_factory, "mlflow-store", make) / "mlflow.db"


def run(*command: str, cwd: Path) -> None:
    """A command that has to succeed; DVC is a fork, as soon as a test has asked for one."""
    program, *arguments = command
    words = _FORKS[0].command(program, *arguments) if program == "dvc" and _FORKS else command
    subprocess.run(words, cwd=cwd, env={**os.environ, "PATH": PATH}, check=True, capture_output=True)


def keep_in_remote(workspace: Workspace, store: Path) -> None:
    """Run the stages that read images, push all to a remote in the folder `store`, and remove it from this disk."""
    for stage in READERS:
        dvc.reproduce(workspace, stage, force=False, on_line=print)
    run("dvc", "remote", "add", "-d", "store", str(store), cwd=workspace.root)
    run("dvc", "push", "--quiet", cwd=workspace.root)
    for path in (workspace.data, workspace.artifacts, workspace.reports, workspace.root / ".dvc" / "cache"):
        shutil.rmtree(path)


def commit(root: Path) -> None:
    """Everything, by nobody in particular."""
    run("git", "add", "--all", cwd=root)
    run("git", "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "--quiet", "--message", "x", cwd=root)
