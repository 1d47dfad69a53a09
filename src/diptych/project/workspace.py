"""Folders and files of a diptych project, and the lock that only one run holds."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from diptych.errors import DiptychError

_OF_ANOTHER = "It belongs to another user, such as root in a container: `sudo chown -R $(id -u):$(id -g) {folder}`."
_UNWRITABLE = {
    errno.EROFS: "A run writes into the project: mount it writable, or clone it to another folder.",
    errno.EACCES: _OF_ANOTHER,
    errno.EPERM: _OF_ANOTHER,
    errno.ENOLCK: "Its file system has no locks: mount it with them, or clone the project to a local disk.",
    errno.ENOSYS: "Its file system has no locks: mount it with them, or clone the project to a local disk.",
}
"""Advice by the number of the error."""


@dataclass(frozen=True)
class Workspace:
    """The folders and files of the project at `root`, the folder that holds dvc.yaml."""

    root: Path = field(default_factory=Path.cwd)

    @property
    def params(self) -> Path:
        """All settings."""
        return self.root / "params.yaml"

    @property
    def presets(self) -> Path:
        """Complete params.yaml files, one for each experiment."""
        return self.root / "presets"

    @property
    def data(self) -> Path:
        """The dataset version: captions.json and tar shards."""
        return self.root / "data"

    @property
    def artifacts(self) -> Path:
        """Outputs of stages that other stages read."""
        return self.root / "artifacts"

    @property
    def manifest(self) -> Path:
        """Table of the accepted images (validate)."""
        return self.artifacts / "manifest.parquet"

    @property
    def captions(self) -> Path:
        """Table of the accepted captions (validate)."""
        return self.artifacts / "captions.parquet"

    @property
    def prepared(self) -> Path:
        """Pixels and token ids, ready to be mapped into memory (preprocess)."""
        return self.artifacts / "prepared"

    @property
    def tokenizer(self) -> Path:
        """The text tower's tokenizer as a transformers folder (preprocess)."""
        return self.artifacts / "tokenizer"

    @property
    def model(self) -> Path:
        """Weights, configuration and tokenizer of the trained model (train)."""
        return self.artifacts / "model"

    @property
    def baselines(self) -> Path:
        """Results of the test queries by each baseline (baselines)."""
        return self.artifacts / "baselines.npz"

    @property
    def controls(self) -> Path:
        """Results of the test queries re-ranked by the controls to the fusion (controls)."""
        return self.artifacts / "controls.npz"

    @property
    def reports(self) -> Path:
        """Metrics, tables and pages for people."""
        return self.root / "reports"

    @property
    def local(self) -> Path:
        """Files that belong to no version: caches and checkpoints, which may be deleted.

        Where no server keeps them, MLflow's registry and Prefect's runs are here too.
        """
        return self.root / ".diptych"

    @property
    def journal(self) -> Path:
        """Former state of `data/` while it is being changed."""
        return self.local / "taking.json"

    @contextmanager
    def held(self, purpose: str) -> Iterator[None]:
        """Keep other runs out of the workspace while the block runs.

        The lock is the kernel's: it ends with the process, even after a kill.

        Raises:
            DiptychError: another process holds the workspace (the message names it), or nothing can be written there.
        """
        note = self.local / "holder.json"
        lock = FileLock(self.local / "lock", timeout=0)
        try:
            self.local.mkdir(exist_ok=True)
            lock.acquire()
        except Timeout:
            raise DiptychError(f"{self.root} is in use by {_describe(note)}. Wait for it, or stop it.") from None
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise DiptychError(_unwritable(self.local, error)) from None
        try:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose, "since": started}
            note.write_text(json.dumps(holder), encoding="utf-8")
            yield
        finally:
            note.unlink(missing_ok=True)
            lock.release()


def _unwritable(folder: Path, error: OSError) -> str:
    """Return why nothing can be written to `folder`, and what to do."""
    advice = _UNWRITABLE[error.errno or 0].format(folder=folder)
    return f"{error.filename or folder} cannot be written: {error.strerror}. {advice}"


def _describe(note: Path) -> str:
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        return f"`{holder['purpose']}` (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError):
        return "another process that has just started"


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
