"""A temporary clone of the project in which the whole chain has run, by the commands that people type."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from forked import Forks
from sharing import made_once

ROOT = Path(__file__).parents[1]
SCENES = ("data", "scenes", "--train", "60", "--val", "20", "--test", "20")


@dataclass(frozen=True)
class Clone:
    """A clone of the working tree, and what its first run printed."""

    forks: ClassVar[Forks]
    root: Path
    summary: dict[str, Any]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`diptych ARGUMENTS`, not waited for."""
        command = [str(Path(sys.executable).with_name("diptych")), *arguments]
        return subprocess.Popen(
            command, cwd=self.root, env=_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def diptych(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`diptych ARGUMENTS`, waited for."""
        return subprocess.run(
            self.forks.command(*arguments), cwd=self.root, env=_environment(), text=True, capture_output=True
        )

    def run(self, *arguments: str) -> dict[str, Any]:
        """The summary of `diptych run`, which has to succeed."""
        done = self.diptych("run", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    def command(self, *command: str) -> str:
        """What another command prints; it has to succeed."""
        if command[0] == "diptych":
            command = tuple(self.forks.command(*command[1:]))
        return subprocess.run(
            command, cwd=self.root, env=_environment(), text=True, check=True, capture_output=True
        ).stdout

    def lock(self) -> dict[str, Any]:
        """dvc.lock."""
        content: dict[str, Any] = yaml.safe_load((self.root / "dvc.lock").read_text())
        return content

    def copy(self, folder: Path) -> Clone:
        """The same again, to be spoilt."""
        return Clone(Path(shutil.copytree(self.root, folder, symlinks=True)), self.summary)


def _environment() -> dict[str, str]:
    """As in a shell: nothing that this process has set for itself."""
    own = ("DIPTYCH_", "PREFECT_", "MLFLOW_", "COVERAGE_", "PYTEST_", "OMP_", "NUMBA_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    folder = str(Path(sys.executable).parent)
    return environment | {"PATH": os.pathsep.join([folder, os.environ["PATH"]])}


def clone_project(root: Path) -> None:
    """What git tracks, and new files that it does not ignore, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "clone"]):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@localhost", *command], cwd=root, check=True)


@pytest.fixture(scope="session", autouse=True)
def _diptych(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Clone.forks = Forks("diptych", tmp_path_factory.mktemp("diptych"))
    yield
    Clone.forks.end()


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which the tiny chain has run once; tests that change it work on a copy."""

    def make(folder: Path) -> None:
        empty = Clone(folder / "diptych", {})
        clone_project(empty.root)
        scenes = empty.diptych(*SCENES)
        assert scenes.returncode == 0, scenes.stderr
        (folder / "summary.json").write_text(json.dumps(empty.run("--preset", "tiny")))

    folder = made_once(tmp_path_factory, "chain", make)
    made = Clone(folder / "diptych", json.loads((folder / "summary.json").read_text()))
    # Each process of the tests has its own: only one run at a time may hold it.
    return made.copy(tmp_path_factory.mktemp("clone") / "diptych")
