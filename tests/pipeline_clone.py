"""A temporary clone of the project in which the whole chain has run, by the commands that people type."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import kill_points
import pytest
import shell
import yaml
from forked import Forks
from forking import PACKAGE, PROGRAMS
from prefect_server import prefect_address, prefect_home
from sharing import made_once

ROOT = Path(__file__).parents[1]
SCENES = ("data", "scenes", "--train", "60", "--val", "20", "--test", "20")


@dataclass(frozen=True)
class Clone:
    """A clone of the working tree, and what its first run printed.

    Its commands are forks, and so are the commands that these run (forked.py). Those of `start` are none. What needs a
    Prefect server uses that of the tests, unless it runs `alone`.
    """

    forks: ClassVar[Forks]
    prefect: ClassVar[partial[str]]
    """Gives the address of the Prefect server of the tests."""
    root: Path
    summary: dict[str, Any]

    def start(self, *arguments: str, alone: bool = False) -> subprocess.Popen[str]:
        """`diptych ARGUMENTS`, not waited for."""
        command = [str(Path(sys.executable).with_name("diptych")), *arguments]
        environment = shell.environment(**{} if alone else self._server())
        return subprocess.Popen(
            command, cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def diptych(
        self, *arguments: str, alone: bool = False, killed_at: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`diptych ARGUMENTS`, waited for; it, or the stage that it runs, is killed at a moment of kill_points.py."""
        settings = {} if killed_at is None else kill_points.killed_at(killed_at)
        return self._wait_for("diptych", *arguments, alone=alone, **settings)

    def run(self, *arguments: str, alone: bool = False) -> dict[str, Any]:
        """The summary of `diptych run`, which has to succeed."""
        done = self.diptych("run", "--json", *arguments, alone=alone)
        assert done.returncode == 0, done.stderr
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    def command(self, *command: str) -> str:
        """What another command prints; it has to succeed."""
        done = self._wait_for(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def example(self, program: str) -> str:
        """What a Python program prints; it has to succeed."""
        return self.command(PACKAGE, "-c", program)

    def python(self, *arguments: str) -> str:
        """What `python ARGUMENTS` prints, with what a run imports; it has to succeed."""
        return self.command("diptych", *arguments)

    def _wait_for(
        self, program: str, *arguments: str, alone: bool = False, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        words = self.forks.command(program, *arguments) if program in PROGRAMS else [program, *arguments]
        settings |= self.forks.everywhere() | ({} if alone else self._server())
        environment = shell.environment(**settings)
        return subprocess.run(words, cwd=self.root, env=environment, text=True, capture_output=True)

    def _server(self) -> dict[str, str]:
        return {"PREFECT_API_URL": self.prefect()}

    def lock(self) -> dict[str, Any]:
        """dvc.lock."""
        content: dict[str, Any] = yaml.safe_load((self.root / "dvc.lock").read_text())
        return content

    def copy(self, folder: Path) -> Clone:
        """The same again, to be spoilt."""
        return Clone(Path(shutil.copytree(self.root, folder, symlinks=True)), self.summary)


def clone_project(root: Path, mlflow_store: Path, factory: pytest.TempPathFactory) -> None:
    """What git tracks, and new files that it does not ignore, committed; and empty stores of MLflow and Prefect."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "clone"]):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@localhost", *command], cwd=root, check=True)
    (root / ".diptych").mkdir()
    shutil.copy(mlflow_store, root / ".diptych" / "mlflow.db")
    shutil.copytree(prefect_home(factory), root / ".diptych" / "prefect")


@pytest.fixture(scope="session")
def clones(heavy: None, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the commands of clones need."""
    Clone.forks = forks
    Clone.prefect = partial(prefect_address, tmp_path_factory)


@pytest.fixture(scope="session")
def chain(clones: None, mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which the tiny chain has run once; tests that change it work on a copy."""

    def make(folder: Path) -> None:
        empty = Clone(folder / "diptych", {})
        clone_project(empty.root, mlflow_store, tmp_path_factory)
        scenes = empty.diptych(*SCENES)
        assert scenes.returncode == 0, scenes.stderr
        (folder / "summary.json").write_text(json.dumps(empty.run("--preset", "tiny")))

    folder = made_once(tmp_path_factory, "chain", make)
    made = Clone(folder / "diptych", json.loads((folder / "summary.json").read_text()))
    # Each process of the tests has its own: only one run at a time may hold it.
    return made.copy(tmp_path_factory.mktemp("clone") / "diptych")
