"""Repair of what a killed run leaves behind in DVC's files, and of links in a project that was moved."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from diptych.project import dvc
from diptych.project.holders import DYING
from diptych.project.workspace import Workspace

_USERS = re.compile(r'"pid": (\d+)')


def repair(workspace: Workspace) -> None:
    """Remove a half-written dvc.lock and locks of dead processes; restore links into a cache that was moved.

    The caller holds the workspace, so no run uses these files.

    Raises:
        DiptychError: a file that DVC reads has a merge conflict.
    """
    dvc.refuse_conflicts(workspace)
    lock = workspace.root / "dvc.lock"
    if lock.exists() and not _is_whole(lock):
        # DVC writes it in place. Without it the run cache still knows every stage, so nothing is computed again.
        lock.unlink()
    _remove_dead_users(_rwlock(workspace))
    if _has_broken_links(workspace):
        # Links hold the cache's path. Stages compute again what the cache lacks.
        dvc.failure(workspace, "checkout")


def are_there(workspace: Workspace) -> bool:
    """Return whether `repair` has something to repair, other than a dvc.lock that DVC refuses."""
    rwlock = _rwlock(workspace)
    return (rwlock.exists() and not _is_unused(rwlock)) or _has_broken_links(workspace)


def _rwlock(workspace: Workspace) -> Path:
    return workspace.root / ".dvc" / "tmp" / "rwlock"


def _is_whole(lock: Path) -> bool:
    """Return whether DVC accepts the file: a file that was cut off may well be YAML."""
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.strictyaml import load

    try:
        load(str(lock), COMPILED_LOCKFILE_SCHEMA)
    except DvcException:
        return False
    return True


def _remove_dead_users(rwlock: Path) -> None:
    """Remove DVC's list of the processes that use files, unless one of them still runs.

    A killed process ends a moment after its parent. One that lives on belongs to somebody, whom DVC itself reports.
    """
    last = time.monotonic() + DYING
    while rwlock.exists() and _has_live_user(rwlock) and time.monotonic() < last:
        time.sleep(0.05)
    if rwlock.exists() and not _has_live_user(rwlock):
        rwlock.unlink()


def _is_unused(rwlock: Path) -> bool:
    """Return whether the file is whole and names no process, as DVC leaves it."""
    try:
        text = rwlock.read_text(encoding="utf-8")
        json.loads(text)
    except ValueError:
        return False
    return not _USERS.search(text)


def _has_live_user(rwlock: Path) -> bool:
    """Return whether a DVC process that still runs uses files of this workspace."""
    try:
        users = _USERS.findall(rwlock.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return False
    for pid in {int(user) for user in users}:
        try:
            if "dvc" in " ".join(psutil.Process(pid).cmdline()):
                return True
        except psutil.Error:
            continue
    return False


def _has_broken_links(workspace: Workspace) -> bool:
    """Return whether data or results hold links, as cache.type symlink makes them, that lead nowhere."""
    folders = (workspace.data, workspace.artifacts, workspace.reports)
    paths = (path for folder in folders for path in (folder, *folder.rglob("*")))
    return any(path.is_symlink() and not path.exists() for path in paths)
