"""Checks after a recovery; each function yields the problems as sentences."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from diptych.data.captions import read_dataset
from diptych.errors import DiptychError
from diptych.project import dvc
from diptych.project.params import read_params
from diptych.project.processes import HOLDER
from diptych.project.provenance import model_digests
from diptych.registry.claim import PREFIX as CLAIMS
from diptych.registry.history import history
from diptych.registry.registered_model import CHALLENGER, CHAMPION, PREVIOUS, RegisteredModel

from .project import SCENES
from .stack import Stack

CHANGES = {"data.dvc", "dvc.lock", "params.yaml"}
"""Tracked files that a run may change."""

_OF_THE_WORKER = re.compile(r"prefect-workspace-attempt-.*|runner_storage|tmp.*prefect")
"""Names of empty folders that Prefect's worker leaves when it is killed."""


class Checks:
    """Checks of a project and its registry. A version that was complete is not downloaded again before `everything`."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._project = stack.project
        self._workspace = stack.project.workspace
        self._whole: set[str] = set()
        self._newest = 0

    def after(self, summary: dict[str, Any]) -> list[str]:
        """Return the problems after a run that printed `summary`."""
        model = RegisteredModel.of(self._workspace, read_params(self._workspace))
        problems = [
            *self._versions(model),
            *self._aliases(model, summary),
            *self._history(model),
            *self._tracking(model),
            *self._data(),
            *self._tree(),
            *self._leftovers(),
        ]
        self._newest = max(map(int, model.numbers()), default=0)
        return problems

    def is_judged(self) -> bool:
        """Return True once the gate has decided on the challenger, so that only the promotion remains."""
        model = RegisteredModel.of(self._workspace, read_params(self._workspace))
        return "gate" in model.find(CHALLENGER).tags

    def everything(self) -> list[str]:
        """Return the problems at the end: of every version again, and of the remotes."""
        self._whole.clear()
        model = RegisteredModel.of(self._workspace, read_params(self._workspace))
        problems = list(self._versions(model))
        missing = subprocess.run(
            ["dvc", "status", "--cloud", "--json"],
            cwd=self._project.root,
            env=self._stack.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if missing.returncode or json.loads(missing.stdout or "{}"):
            problems.append(f"the DVC remote: {(missing.stdout or missing.stderr)[-300:]}")
        if not self._project.runs_are_shared():
            problems.append("the git remote lacks runs")
        return problems

    def _versions(self, model: RegisteredModel) -> Iterator[str]:
        """Check that every version has its whole package, and that no model is registered twice."""
        versions = [model.find(number) for number in model.numbers()]
        for version in versions:
            if version.version in self._whole:
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    model.download(version, Path(folder))
                    self._whole.add(version.version)
                except DiptychError as error:
                    yield str(error)
            if "not_reproducible" in version.tags:
                yield f"version {version.version} is not reproducible: {version.tags['not_reproducible']}"
        counts = Counter(version.tags.get("model_sha256", "none") for version in versions)
        yield from (f"{count} versions are the model {sha[:12]}" for sha, count in counts.items() if count > 1)

    def _aliases(self, model: RegisteredModel, summary: dict[str, Any]) -> Iterator[str]:
        """Check that this round's model is challenger, and champion too, since the gate accepts everything."""
        aliases, numbers = model.aliases(), model.numbers()
        for alias in (CHALLENGER, CHAMPION, PREVIOUS):
            if aliases.get(alias) not in numbers:
                yield f"{alias} points to version {aliases.get(alias)}, which does not exist"
        if summary.get("version", {}).get("version") != aliases.get(CHALLENGER):
            yield f"the run reports another version than the challenger, {aliases.get(CHALLENGER)}"
        if aliases.get(CHALLENGER) in numbers:
            version = model.find(CHALLENGER)
            digests = model_digests(self._workspace.model)
            if digests != {name: version.tags.get(name) for name in digests}:
                yield "the challenger is not the model in artifacts/"
            if int(version.version) != self._newest + 1 and self._newest:
                yield f"the challenger is version {version.version}, and the newest one before was {self._newest}"
        if aliases.get(CHAMPION) != aliases.get(CHALLENGER):
            yield f"the champion is version {aliases.get(CHAMPION)}, not the challenger {aliases.get(CHALLENGER)}"

    def _history(self, model: RegisteredModel) -> Iterator[str]:
        """Check that the history has each move of the champion, each from the target of the move before."""
        moves = [event for event in history(model) if event.moves]
        before = None
        for event in moves:
            if event.origin != before:
                yield f"history: a move from {event.origin}, where {before} was the champion"
            before = event.target
        if before != model.aliases().get(CHAMPION):
            yield f"history ends with version {before}, and the champion is {model.aliases().get(CHAMPION)}"
        tags = model.client.get_registered_model(model.name).tags
        yield from (f"a claim is left: {text}" for key, text in tags.items() if key.startswith(CLAIMS))

    def _tracking(self, model: RegisteredModel) -> Iterator[str]:
        """Check that MLflow shows no run as running."""
        experiment = model.client.get_experiment_by_name(read_params(self._workspace).register_.experiment)
        assert experiment is not None
        for run in model.client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
            yield f"MLflow's run {run.info.run_id} is shown as running"

    def _data(self) -> Iterator[str]:
        """Check that DVC has nothing to do, and that the dataset has all images of each drop once."""
        if changed := dvc.status(self._workspace):
            yield f"dvc status: {changed}"
        dataset = read_dataset(self._workspace.data)
        present = Counter(image["sha256"] for image in dataset.images if image.get("sha256"))
        wanted = set().union(*self._project.drops.values())
        if present and max(present.values()) > 1:
            yield "an image is in the dataset twice"
        for name, digests in self._project.drops.items():
            if missing := len(digests - set(present)):
                yield f"{missing} of {len(digests)} images of the drop {name} are not in the dataset"
        if (count := len(dataset.images)) != SCENES + len(wanted):
            yield f"{count} images are in the dataset, and {SCENES} scenes and {len(wanted)} dropped ones have to be"
        outcomes = {entry["name"]: entry["outcome"] for entry in _read_json(self._workspace.local / "inbox.json", [])}
        for name, digests in self._project.drops.items():
            if outcomes.get(name) not in (("taken", "known") if digests else ("refused",)):
                yield f"the ledger says of the drop {name}: {outcomes.get(name)}"

    def _tree(self) -> Iterator[str]:
        """Check that git status lists only files that a run may change."""
        lines = self._project.ask("git", "status", "--porcelain", "--untracked-files=all").splitlines()
        if others := [line for line in lines if line[3:] not in CHANGES]:
            yield f"git status: {others}"

    def _leftovers(self) -> Iterator[str]:
        """Check that no files, processes or locks of a killed run are left."""
        root, local = self._project.root, self._workspace.local
        for name in ("taking.json", "inbox", "holder.json", "training-run.json"):
            if (local / name).exists():
                yield f".diptych/{name} is left"
        yield from (f"a temporary file is left: {path}" for path in _temporary(root))
        yield from (f"a lock of git is left: {path}" for path in (root / ".git").rglob("*.lock"))
        users = _read_json(root / ".dvc" / "tmp" / "rwlock", {})
        if any(users.values()):
            yield f"DVC's rwlock names users: {users}"
        left = [path.name for path in (root.parent / "tmp").iterdir() if not _OF_THE_WORKER.fullmatch(path.name)]
        yield from (f"in TMPDIR is left: {name}" for name in left)
        yield from _processes(self._stack)
        try:
            FileLock(local / "lock", timeout=0).acquire()
        except Timeout:
            yield "the workspace is held"


def _temporary(root: Path) -> Iterator[Path]:
    """Yield unfinished files of this project or of DVC, which their names show."""

    def is_temporary(name: str) -> bool:
        return (name.endswith((".tmp", ".old", ".part")) and name.startswith(".")) or name.startswith("tmp_obj_")

    for folder, folders, files in os.walk(root):
        yield from (Path(folder, name) for name in (*folders, *files) if is_temporary(name))


def _processes(stack: Stack) -> Iterator[str]:
    """Yield a problem for each process of a run of the project; the worker is not such a process."""
    root = str(stack.project.root)
    worker = stack.worker.process.pid if stack.worker.process else 0
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == worker:
                continue
            is_held = process.environ().get(HOLDER, "").partition(":")[2] == root
            if is_held or _is_in(process.cwd, root):
                yield f"a process is left: {' '.join(process.cmdline())[:200]}"
        except psutil.Error:
            continue


def _is_in(cwd: Callable[[], str], root: str) -> bool:
    return cwd() == root or cwd().startswith(f"{root}/")


def _read_json(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text() or "null") or otherwise if path.exists() else otherwise
