"""Where everything lies in a diptych project, and who is at work in it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from diptych.errors import DiptychError


@dataclass(frozen=True)
class Workspace:
    """The folders and files of the project at `root`, the folder that holds dvc.yaml."""

    root: Path = field(default_factory=Path.cwd)

    @property
    def params(self) -> Path:
        """Every knob."""
        return self.root / "params.yaml"

    @property
    def presets(self) -> Path:
        """Complete params.yaml files, one an experiment."""
        return self.root / "presets"

    @property
    def data(self) -> Path:
        """The dataset version: captions.json and tar shards."""
        return self.root / "data"

    @property
    def artifacts(self) -> Path:
        """What the stages hand on to each other."""
        return self.root / "artifacts"

    @property
    def manifest(self) -> Path:
        """The accepted images, one row each (validate)."""
        return self.artifacts / "manifest.parquet"

    @property
    def captions(self) -> Path:
        """The accepted captions, one row each (validate)."""
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
        """What the test queries found by each baseline (baselines)."""
        return self.artifacts / "baselines.npz"

    @property
    def controls(self) -> Path:
        """What they found re-ranked by the controls to the fusion (controls)."""
        return self.artifacts / "controls.npz"

    @property
    def reports(self) -> Path:
        """What people read."""
        return self.root / "reports"

    @property
    def local(self) -> Path:
        """What is in no version: caches and checkpoints, which may be deleted; where no server keeps them, MLflow's
        registry and Prefect's runs.
        """
        return self.root / ".diptych"

    @property
    def journal(self) -> Path:
        """What `data/` was before a drop that is being taken into it."""
        return self.local / "taking.json"

    @contextmanager
    def held(self, purpose: str) -> Iterator[None]:
        """Keeps other runs out of the workspace while the block runs.

        The lock is the kernel's and ends with the process, however that ends.

        Raises:
            DiptychError: another process holds the workspace; the message says which.
        """
        from filelock import FileLock, Timeout

        self.local.mkdir(exist_ok=True)
        note = self.local / "holder.json"
        lock = FileLock(self.local / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise DiptychError(f"{self.root} is in use by {_describe(note)}. Wait for it, or stop it.") from None
        try:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            note.write_text(
                json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose, "since": started}),
                encoding="utf-8",
            )
            yield
        finally:
            note.unlink(missing_ok=True)
            lock.release()


def _describe(note: Path) -> str:
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        return f"`{holder['purpose']}` (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError):
        return "another process that has just started"


def find_workspace(start: Path | None = None) -> Workspace:
    """The project that `start` (default: the current folder) lies in.

    Raises:
        DiptychError: no folder from there upwards holds a dvc.yaml.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file():
            return Workspace(folder)
    raise DiptychError(f"{start} is not in a diptych project: no dvc.yaml here or in a folder above.")
