"""The project of the year: a clone with another dataset and other parameters, and its remotes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from months.drops import SIZE

ROOT = Path(__file__).parents[2]
PARAMS = Path(__file__).with_name("params.yaml")
SCENES = ("--train", "300", "--val", "60", "--test", "100", "--seed", "1", "--size", str(SIZE))
"""Arguments for the dataset at the beginning of the year."""
OPERATOR = "operator"
"""User name of a person of the team in the history."""
AUTHOR = ("-c", "user.name=team", "-c", "user.email=team@localhost")
"""Options of git that name the author of a commit."""


class CommandError(Exception):
    """A command failed; the message is its output."""


@dataclass(frozen=True)
class Project:
    """A clone, and the environment of a shell in it."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command and return its stdout; where it `fails` without stdout, return its stderr.

        Raises:
            CommandError: it fails, and `fails` is false.
        """
        done = subprocess.run(
            command, cwd=self.root, env=dict(self.environment), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode and not fails:
            raise CommandError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"[-6000:])
        return done.stdout or (done.stderr if fails else "")

    def diptych(self, *arguments: str) -> str:
        """Run a command of diptych as a person does. Raises as `run`."""
        return self.run("diptych", *arguments)

    def dataset_version(self) -> str:
        """Return the hash that data.dvc records."""
        content = yaml.safe_load((self.root / "data.dvc").read_text(encoding="utf-8"))
        return str(content["outs"][0]["md5"])

    def sources(self) -> list[str]:
        """Return the paths that the images of the dataset were imported from."""
        content = json.loads((self.root / "data" / "captions.json").read_text(encoding="utf-8"))
        return [str(image["source"]) for image in content["images"]]

    def drop_outcome(self, name: str) -> dict[str, Any]:
        """Return the ledger's last entry for a drop: its outcome, and why."""
        entries = json.loads((self.root / ".diptych" / "inbox.json").read_text(encoding="utf-8"))
        return next((dict(entry) for entry in reversed(entries) if entry["name"] == name), {"outcome": "not looked at"})


def make_project(folder: Path, environment: Mapping[str, str]) -> Project:
    """Make a clone of the last commit of this repository in `folder`/project, with scenes as its dataset.

    Its git remote is `folder`/origin.git; its DVC remote is in S3.
    """
    origin = folder / "origin.git"
    _git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    _git(ROOT, "push", "--quiet", str(origin), "HEAD:refs/heads/main")
    project = clone(origin, folder / "project", environment)
    shutil.copy(PARAMS, project.root / "params.yaml")
    (project.root / "inbox").mkdir(exist_ok=True)
    # The lock file is that of another dataset, with other parameters.
    (project.root / "dvc.lock").unlink(missing_ok=True)
    project.run("dvc", "remote", "add", "--quiet", "--default", "storage", "s3://dvc/year")
    project.diptych("data", "scenes", *SCENES)
    project.run("git", *AUTHOR, "commit", "--quiet", "--all", "--message", "A project of our own")
    project.run("git", "push", "--quiet", "origin", "main")
    return project


def clone(origin: Path, root: Path, environment: Mapping[str, str]) -> Project:
    """Make the project of a person who has only git and the servers' addresses; it runs the clone's code."""
    _git(root.parent, "clone", "--quiet", str(origin), str(root))
    return Project(root, {**environment, "PYTHONPATH": str(root / "src"), "DIPTYCH_USER": OPERATOR})


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, stdin=subprocess.DEVNULL)
