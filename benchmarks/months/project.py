"""The project that lives through the year: a clone with a dataset and parameters of its own, and its remotes."""

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
"""What the team has when the year begins."""
OPERATOR = "operator"
"""Who history says that a person of the team is."""
_AUTHOR = ("-c", "user.name=team", "-c", "user.email=team@localhost")


class CommandError(Exception):
    """A command failed; the message is what it said."""


@dataclass(frozen=True)
class Project:
    """A clone, and the environment of a shell in it."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *command: str, fails: bool = False) -> str:
        """What a command prints; where it `fails` and prints nothing, its errors.

        Raises:
            CommandError: it fails, and it may not (`fails`).
        """
        done = subprocess.run(
            command, cwd=self.root, env=dict(self.environment), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode and not fails:
            raise CommandError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"[-6000:])
        return done.stdout or (done.stderr if fails else "")

    def diptych(self, *arguments: str) -> str:
        """As a person types it. Raises as `run`."""
        return self.run("diptych", *arguments)

    def dataset_version(self) -> str:
        """What data.dvc records."""
        content = yaml.safe_load((self.root / "data.dvc").read_text(encoding="utf-8"))
        return str(content["outs"][0]["md5"])

    def sources(self) -> list[str]:
        """Of the images of the dataset: the paths that they were imported from."""
        content = json.loads((self.root / "data" / "captions.json").read_text(encoding="utf-8"))
        return [str(one["source"]) for one in content["images"]]

    def drop_outcome(self, name: str) -> dict[str, Any]:
        """What became of a drop, and why."""
        entries = json.loads((self.root / ".diptych" / "inbox.json").read_text(encoding="utf-8"))
        return next((dict(one) for one in reversed(entries) if one["name"] == name), {"outcome": "not looked at"})


def make_project(folder: Path, environment: Mapping[str, str]) -> Project:
    """A clone in `folder`/project of the repository that this file lies in, as it is committed, with scenes for a
    dataset; its git remote is `folder`/origin.git, its DVC remote in S3."""
    origin = folder / "origin.git"
    _git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    _git(ROOT, "push", "--quiet", str(origin), "HEAD:refs/heads/main")
    project = clone(origin, folder / "project", environment)
    shutil.copy(PARAMS, project.root / "params.yaml")
    (project.root / "inbox").mkdir(exist_ok=True)
    # That of another dataset, with other parameters.
    (project.root / "dvc.lock").unlink(missing_ok=True)
    project.run("dvc", "remote", "add", "--quiet", "--default", "storage", "s3://dvc/year")
    project.diptych("data", "scenes", *SCENES)
    project.run("git", *_AUTHOR, "commit", "--quiet", "--all", "--message", "A project of our own")
    project.run("git", "push", "--quiet", "origin", "main")
    return project


def clone(origin: Path, root: Path, environment: Mapping[str, str]) -> Project:
    """What somebody has who has nothing but git, and the servers' addresses; the code that runs is the clone's."""
    _git(root.parent, "clone", "--quiet", str(origin), str(root))
    return Project(root, {**environment, "PYTHONPATH": str(root / "src"), "DIPTYCH_USER": OPERATOR})


def say(text: str) -> None:
    """Progress, for people."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, stdin=subprocess.DEVNULL)
