"""git's commands as this project uses them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

PATIENCE = 600.0
"""Seconds that a command may take; those that reach other machines move little."""

_OF_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
"""Where a hook of git runs this, they name the repository of the hook; here the folder does."""


class GitError(Exception):
    """A command failed; the message is git's own, without its hints."""


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What git answers in `folder`. It asks nobody for a password, and does not touch the index for speed.

    Raises:
        GitError: it fails, is not there, or takes too long.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_HOOKS}
    surroundings = {**inherited, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**surroundings, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=PATIENCE,
        )
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise GitError(f"git {arguments[0]} took more than {PATIENCE:.0f} seconds") from None
    if answer.returncode:
        raise GitError(_reason(answer.stderr) or f"git {arguments[0]} failed")
    return answer.stdout.strip("\n")


def git_or_empty(folder: Path, *arguments: str) -> str:
    """What git answers; empty where it fails."""
    try:
        return git(folder, *arguments)
    except GitError:
        return ""


def without_secrets(text: str) -> str:
    """`text` without users, passwords and signatures of the addresses in it."""
    return re.sub(r"(://)[^/\s]*@", r"\1", re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text))


def _reason(errors: str) -> str:
    """The line of git's words that tells what is wrong; the others are hints."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal: ", "error: ", "! "))]
    return (telling or lines or [""])[0].removeprefix("fatal: ").removeprefix("error: ")
