"""git's commands as this project uses them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from diptych.errors import DiptychError

PATIENCE = 600.0
"""Seconds that a command may take; a push or fetch of runs moves little data."""

_CONVERTED = re.compile(
    r"(?P<mode>\d+) [0-9a-f]+ 0\ti/(?P<index>lf|mixed) +w/(?P<file>crlf|mixed) +attr/[^\t]*\t(?P<path>.*)", re.DOTALL
)
_CONFLICT = re.compile(rb"^<<<<<<< ", re.MULTILINE)
OF_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
"""Variables that a hook of git sets: they would name the hook's repository in place of the folder's."""

_ADVICE = (
    ("git is not installed", "Install git; where it is, its folder has to be on PATH."),
    ("must be run in a work tree", "`git config core.bare false`, where this is a checkout."),
    ("unknown repository extension", "Use the newer git that made this repository."),
    ("Needed a single revision", "`git commit` the project; where it has commits, `git fsck` tells what is damaged."),
    ("index file", "`rm .git/index`, then `git reset`, makes the index again from the last commit."),
    ("unable to access", "Make it readable, or set HOME to a folder of your own."),
)
"""Words of git's messages, and the advice on each."""


class GitError(Exception):
    """A failed command: the `reason` in git's own words, and the `advice` on it, empty where there is none."""

    def __init__(self, reason: str, advice: str = "") -> None:
        self.reason = reason
        self.advice = advice
        super().__init__(f"{reason}. {advice}" if advice else reason)


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Return git's output in `folder`. Git asks for no password, and does not refresh the index.

    Raises:
        GitError: the command fails or takes too long, or git is not installed.
    """
    return git_bytes(folder, *arguments, environment=environment).decode("utf-8", errors="replace").strip("\n")


def git_bytes(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> bytes:
    """Return git's output as bytes; else as `git`."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_HOOKS}
    surroundings = {**inherited, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**surroundings, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
    except FileNotFoundError:
        raise GitError("git is not installed", _advice("git is not installed", [], folder)) from None
    except subprocess.TimeoutExpired:
        raise GitError(f"git {arguments[0]} took more than {PATIENCE:.0f} seconds") from None
    if answer.returncode:
        lines = [line.strip() for line in answer.stderr.decode("utf-8", errors="replace").splitlines() if line.strip()]
        reason = _reason(lines) or f"git {arguments[0]} failed"
        raise GitError(reason, _advice(reason, lines, folder))
    return answer.stdout


def git_or_empty(folder: Path, *arguments: str) -> str:
    """Return git's output; empty where the command fails."""
    try:
        return git(folder, *arguments)
    except GitError:
        return ""


def head_commit(folder: Path) -> str:
    """Return the commit that is checked out, 40 digits.

    Raises:
        GitError: there is none.
    """
    return git(folder, "rev-parse", "--verify", "HEAD^{commit}")


def head(folder: Path) -> str:
    """Return the commit that is checked out, as `head_commit`, once git has compared the files with it.

    Raises:
        GitError: there is none, or git cannot compare the files of `folder` with it.
    """
    commit = head_commit(folder)
    git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit


def find_repository(folder: Path) -> Path | None:
    """Return the `.git` that `folder` belongs to, whatever state it is in; None where `folder` is not in git."""
    repositories = (parent / ".git" for parent in (folder, *folder.parents))
    return next((path for path in repositories if os.path.lexists(path)), None)


def changed_paths(folder: Path, *excluded: str) -> list[str]:
    """Return the paths relative to `folder`, but for the `excluded`, that differ from HEAD.

    Raises:
        GitError: git cannot tell.
    """
    options = ("--porcelain", "-z", "--no-renames", "--untracked-files=normal")
    answer = git(folder, "status", *options, "--", ".", *(f":(exclude){name}" for name in excluded))
    # Unlike most commands of git, status names paths relative to the top of the repository.
    prefix = git(folder, "rev-parse", "--show-prefix")
    return [entry[3:].removeprefix(prefix) or "." for entry in answer.split("\0") if entry]


def how_to_restore(path: Path) -> str:
    """Return the command that restores the committed `path`, or one side of it during a merge."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    name = path.absolute().relative_to(folder).as_posix()
    here = f"git -C {shlex.quote(str(folder))}"
    quoted = shlex.quote(name)
    entries = git_or_empty(folder, "ls-files", "--unmerged", "-z", "--", name).split("\0")
    if stages := {entry.partition("\t")[0].split()[2] for entry in entries if entry}:
        present = [side for stage, side in (("2", "ours"), ("3", "theirs")) if stage in stages]
        sides = " or ".join(f"`{here} checkout --{side} {quoted}`" for side in present)
        return f"Keep one side by {sides}, or edit it; then `{here} add {quoted}`."
    if git_or_empty(folder, "cat-file", "-t", f"HEAD:./{name}"):
        return f"`{here} checkout HEAD -- {quoted}` brings back the committed one."
    return "Bring back a copy of it; git has none here."


def refuse_conflict(path: Path) -> None:
    """Refuse a file with a merge conflict; a file that cannot be read passes.

    Raises:
        DiptychError: `path` has a conflict; the message says in which line, and how to resolve it.
    """
    try:
        conflict = _CONFLICT.search(content := path.read_bytes())
    except OSError:
        return
    if conflict:
        line = content.count(b"\n", 0, conflict.start()) + 1
        raise DiptychError(f"{path}, line {line}: a merge conflict is not resolved. {how_to_restore(path)}")


def converted_files(folder: Path) -> dict[str, str]:
    """Return the files below `folder` whose line endings git converted on the way from the commit, with their modes.

    Raises:
        GitError: git cannot tell.
    """
    entries = git(folder, "ls-files", "--eol", "--stage", "-z", "--", ".").split("\0")
    matches = (_CONVERTED.fullmatch(entry) for entry in entries)
    return {match["path"]: match["mode"] for match in matches if match and match["index"] != match["file"]}


def _reason(lines: list[str]) -> str:
    """Return the line of git's output that is the error; the others are hints."""
    errors = [line for line in lines if line.startswith(("fatal: ", "error: ", "! "))]
    return (errors or lines or [""])[0].removeprefix("fatal: ").removeprefix("error: ")


def _advice(reason: str, lines: list[str], folder: Path) -> str:
    """Return the advice on `reason`; empty where there is none."""
    # Git's own line quotes the path as the shell needs it.
    if trust := [line for line in lines if line.startswith("git config --global --add safe.directory")]:
        return f"The folder belongs to another user: work as that user, or trust it by `{trust[0]}`."
    if reason.startswith("not a git repository"):
        if (repository := find_repository(folder)) is None:
            return "`git init`, then commit the project."
        if repository.is_file():
            return f"{repository} leads nowhere: `git worktree repair` in the repository it belongs to, or clone again."
        return f"{repository} is there, but damaged: bring back a copy of it, or clone again."
    return next((advice for words, advice in _ADVICE if words in reason), "")
