"""Relocation of the embedded registry of a project that was moved, copied or restored, or is mounted elsewhere.

MLflow's store holds the absolute path of everything that was logged. After the project's path has changed, packages
would not be found, and new ones would be written to the old path. So the addresses in the store are rewritten here.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import sqlite3
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock, Timeout

from diptych.errors import is_disk_full
from diptych.files import atomic_path
from diptych.project.processes import is_held
from diptych.project.workspace import Workspace
from diptych.registry.answering import ANSWER_TIMEOUT
from diptych.registry.errors import store_errors_explained

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's store that hold where artifacts lie."""
_FOLDERS = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""Tables and columns that name a folder for each row."""
_SCHEME = "file://"

log = logging.getLogger(__name__)


def follow_project(workspace: Workspace, store: Path) -> None:
    """Rewrite the addresses in `store`, which lies in the project, to the project's present path.

    Artifacts written to the former path since are fetched. While another process holds the project nothing happens:
    that process may write artifacts, and may use another path of the project.

    Raises:
        UnreachableError: another program has the store locked.
        DiptychError: the store is damaged.
    """
    artifacts = workspace.local.resolve() / "mlartifacts"
    with store_errors_explained(store), closing(sqlite3.connect(store, timeout=ANSWER_TIMEOUT)) as database:
        if not (_former(database, artifacts) or _defaults(database, workspace)):
            return
        # A process of the run that holds the project has the lock already.
        lock: AbstractContextManager[object] = (
            nullcontext() if is_held(workspace) else FileLock(workspace.local / "lock", timeout=0)
        )
        with suppress(Timeout), lock:
            _follow(database, workspace, artifacts)


def _follow(database: sqlite3.Connection, workspace: Workspace, artifacts: Path) -> None:
    for old in _former(database, artifacts):
        log.info("The registry's artifacts were in %s before: their addresses follow the project.", old)
        _fetch(database, old, artifacts)
        # The target of a link .diptych says nothing about the path of the project.
        within = old.parts[-2:] == artifacts.parts[-2:] and not workspace.local.is_symlink()
        with database:
            _rewrite(database, *((old.parents[1], artifacts.parents[1]) if within else (old, artifacts)))
    with database:
        for address in _defaults(database, workspace):
            command = "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?"
            database.execute(command, (artifacts.as_uri(), address))


def _former(database: sqlite3.Connection, artifacts: Path) -> list[Path]:
    """Return the other paths of this project's artifacts that its experiments hold."""
    # The target of a link .diptych may have any name.
    paths = _locations(database).values()
    return sorted({path for path in paths if path.name == artifacts.name and path != artifacts})


def _defaults(database: sqlite3.Connection, workspace: Workspace) -> list[str]:
    """Return MLflow's default addresses outside of the project, which lie below the working folder of that day."""
    paths, root = _locations(database), workspace.root.resolve()
    return [address for address, path in paths.items() if path.parts[-2:-1] == ("mlruns",) and root not in path.parents]


def _locations(database: sqlite3.Connection) -> dict[str, Path]:
    """Return the paths of the experiments' artifacts in the file system, by address."""
    # A fresh file has no tables yet.
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return {}
    rows = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    return {address: path for (address,) in rows if (path := local_path(address)) is not None}


def _rewrite(database: sqlite3.Connection, old: Path, new: Path) -> None:
    """Replace the folder `old` by `new` in all addresses, as a path and as an address."""
    forms = ((str(old), str(new)), (old.as_uri(), new.as_uri()))
    for (before, after), (table, column) in itertools.product(forms, _ADDRESSES):
        for (value,) in database.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
            # One folder may lie within the other.
            if _is_below(value, before) and not (_is_below(value, after) and _is_below(after, before)):
                moved = after + value[len(before) :]
                database.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (moved, value))


def _is_below(address: str | None, folder: str) -> bool:
    return address is not None and (address == folder or address.startswith(f"{folder}/"))


def _fetch(database: sqlite3.Connection, old: Path, new: Path) -> None:
    """Copy artifacts that only `old` has: an earlier diptych wrote them there after the project had moved."""
    for table, column in _FOLDERS:
        for (address,) in database.execute(f"SELECT {column} FROM {table}").fetchall():
            source = local_path(address)
            if source is not None and old in source.parents and ".." not in source.parts:
                _copy_missing(source, new / source.relative_to(old))


def _copy_missing(source: Path, target: Path) -> None:
    """Copy a folder of artifacts that is not there yet; warn where that fails for another reason than a full disk."""
    try:
        if source.is_dir() and not target.exists():
            with atomic_path(target) as temporary:
                shutil.copytree(source, temporary, symlinks=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        # An error of copytree holds the errors of all files.
        message = "%s cannot be fetched (%s). It belongs to this project: copy it to %s."
        log.warning(message, source, error.strerror or error, target)


def local_path(address: str | None) -> Path | None:
    """Return the absolute path that an address names; None where it is no path of the file system."""
    if address is None or not address.startswith((_SCHEME, "/")):
        return None
    return Path(unquote(address.removeprefix(_SCHEME)) if address.startswith(_SCHEME) else address)
