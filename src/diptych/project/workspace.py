"""Folders and files of a diptych project, and the lock that only one run holds."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diptych.errors import DiptychError
from diptych.project.holders import DYING, describe_holder, has_died, new_holder, parse_holder

_OF_ANOTHER = "It belongs to another user, such as root in a container: `sudo chown -R $(id -u):$(id -g) {folder}`."
_UNWRITABLE = {
    errno.EROFS: "A run writes into the project: mount it writable, or clone it to another folder.",
    errno.EACCES: _OF_ANOTHER,
    errno.EPERM: _OF_ANOTHER,
    errno.EEXIST: "A run keeps its files in a folder of that name: move this file away.",
    errno.ENOLCK: "Its file system has no locks: mount it with them, or clone the project to a local disk.",
    errno.ENOSYS: "Its file system has no locks: mount it with them, or clone the project to a local disk.",
}
"""Advice by the number of the error."""


class _Within:
    """Attribute whose value is the path of a file or folder within the project."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __get__(self, workspace: Workspace, owner: type[Workspace]) -> Path:
        return workspace.root / self.path


@dataclass(frozen=True)
class Workspace:
    """The folders and files of the project at `root`, the folder that holds dvc.yaml."""

    root: Path = field(default_factory=Path.cwd)

    params = _Within("params.yaml")
    """All settings."""
    presets = _Within("presets")
    """Complete params.yaml files, one for each experiment."""
    data = _Within("data")
    """The dataset version: captions.json and tar shards."""
    artifacts = _Within("artifacts")
    """Outputs of stages that other stages read."""
    manifest = _Within("artifacts/manifest.parquet")
    """Table of the accepted images (validate)."""
    captions = _Within("artifacts/captions.parquet")
    """Table of the accepted captions (validate)."""
    prepared = _Within("artifacts/prepared")
    """Pixels and token ids, ready to be mapped into memory (preprocess)."""
    tokenizer = _Within("artifacts/tokenizer")
    """The text tower's tokenizer as a transformers folder (preprocess)."""
    model = _Within("artifacts/model")
    """Weights, configuration and tokenizer of the trained model (train)."""
    baselines = _Within("artifacts/baselines.npz")
    """Results of the test queries by each baseline (baselines)."""
    controls = _Within("artifacts/controls.npz")
    """Results of the test queries re-ranked by the controls to the fusion (controls)."""
    reports = _Within("reports")
    """Metrics, tables and pages for people."""
    feedback = _Within("feedback/marks.jsonl")
    """Marks that users have set on results of searches."""
    queries = _Within("feedback/queries")
    """Profiles of what models were searched with, a file for each model."""
    local = _Within(".diptych")
    """Files that belong to no version: caches and checkpoints, which may be deleted.

    Where no server keeps them, MLflow's registry and Prefect's runs are here too.
    """
    durations = _Within(".diptych/cache/durations.json")
    """Seconds that each stage took when it last ran here."""
    advised = _Within(".diptych/advice/params.yaml")
    """The settings that `diptych advise` last proposed."""
    features = _Within(".diptych/cache/features")
    """Features of frozen towers, of all runs."""
    search = _Within(".diptych/search")
    """Indexes of collections, where DIPTYCH_SEARCH names no other place."""
    unsent = _Within(".diptych/unsent")
    """Figures of trainings that MLflow does not have yet."""
    journal = _Within(".diptych/taking.json")
    """Former state of `data/` while it is being changed."""
    _note = _Within(".diptych/holder.json")
    """Note of the run that holds the workspace."""

    @contextmanager
    def held(self, purpose: str) -> Iterator[None]:
        """Keep other runs out of the workspace while the block runs.

        The lock is the kernel's: it ends with the process, even after a kill.

        Raises:
            DiptychError: another process holds the workspace (the message names it), or nothing can be written there.
        """
        lock = FileLock(self.local / "lock", timeout=0, fallback_to_soft=False)
        try:
            self.local.mkdir(exist_ok=True)
            self._acquire(lock)
        except Timeout:
            other = self.holder()
            name = describe_holder(other) if other else "another process that has just started"
            raise DiptychError(f"{self.root} is in use by {name}. Wait for it, or stop it.") from None
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            advice = _UNWRITABLE[error.errno].format(folder=self.local)
            path = error.filename or self.local
            raise DiptychError(f"{path} cannot be written: {error.strerror}. {advice}") from None
        holder = new_holder(purpose)
        try:
            self._note.write_text(json.dumps(holder), encoding="utf-8")
            yield
        finally:
            # If .diptych was deleted, the next run holds the workspace by now, and the note is its own.
            if self.holder() in ({}, holder):
                self._note.unlink(missing_ok=True)
            lock.release()

    def _acquire(self, lock: FileLock) -> None:
        """Acquire the lock of the workspace; that of a killed process lasts until all its threads have ended."""
        try:
            lock.acquire()
        except Timeout:
            if not has_died(self.holder()):
                raise
            lock.acquire(timeout=DYING)

    def was_interrupted(self) -> bool:
        """Return whether a change of the dataset has not reached its end, and nobody is at work on it."""
        holder = self.holder()
        return self.journal.exists() and (not holder or has_died(holder))

    def holder(self) -> dict[str, Any]:
        """Return the note of the run that holds the workspace; empty where none does, or has not written it yet."""
        try:
            return parse_holder(self._note.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return {}


def find_workspace(start: Path | None = None) -> Workspace:
    """Return the project that `start` (default: the current folder) lies in.

    Raises:
        DiptychError: no folder from there upwards holds a dvc.yaml.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file():
            return Workspace(folder)
    raise DiptychError(f"{start} is not in a diptych project: no dvc.yaml here or in a folder above.")
