"""The embedded registry of a project that was moved, copied, restored, or is seen under another path.

MLflow's store keeps the absolute path of everything that was logged. So in a project that has another path than before,
packages are not found, and new ones would be written to the old path. The addresses follow the project here.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock, Timeout

from diptych.files import atomic_path
from diptych.processes import HOLDER
from diptych.registry.answering import PATIENCE
from diptych.workspace import Workspace

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's store that hold where artifacts lie."""
_FOLDERS = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""Those of them that name a folder for each row."""
_SCHEME = "file://"

log = logging.getLogger(__name__)


def follow_project(workspace: Workspace, store: Path) -> None:
    """Have the addresses in `store`, which lies in the project, follow the project to where it is now.

    Whatever was written to the former path since is fetched. While another process works on the project nothing
    happens: who writes artifacts holds the project, and may see it under another path.
    """
    artifacts = workspace.local.resolve() / "mlartifacts"
    with closing(sqlite3.connect(store, timeout=PATIENCE)) as database:
        outside = _outside(database, workspace)
        if not outside:
            return
        with _alone(workspace) as alone:
            if not alone:
                return
            for old in sorted({path for path in outside.values() if path.parts[-2:] == artifacts.parts[-2:]}):
                log.info("This project was at %s before: the registry's addresses follow it.", old.parents[1])
                _fetch(database, old, artifacts)
                # Where .diptych is a link, the rest of the project has nothing to do with the path that it leads to.
                depth = 0 if workspace.local.is_symlink() else 1
                with database:
                    _rewrite(database, old.parents[depth], artifacts.parents[depth])
            with database:
                _bring_in(database, list(_outside(database, workspace)), artifacts)


def _outside(database: sqlite3.Connection, workspace: Workspace) -> dict[str, Path]:
    """Return the addresses of the experiments' artifacts that lead out of the project, and the paths they name."""
    try:
        rows = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    except sqlite3.OperationalError:
        # Its tables are yet to be made.
        return {}
    inside = workspace.root.resolve(), workspace.local.resolve()
    named = {address: path for (address,) in rows if (path := local_path(address)) is not None}
    return {address: path for address, path in named.items() if not any(map(path.is_relative_to, inside))}


def _bring_in(database: sqlite3.Connection, addresses: list[str], artifacts: Path) -> None:
    """Have experiments keep what comes next in `artifacts`: MLflow's own default is below the folder of that day."""
    for address in addresses:
        command = "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?"
        database.execute(command, (artifacts.as_uri(), address))


def _rewrite(database: sqlite3.Connection, old: Path, new: Path) -> None:
    """Put `new` in the place of the folder `old` in all addresses, as a path and as an address."""
    for before, after in ((str(old), str(new)), (old.as_uri(), new.as_uri())):
        for table, column in _ADDRESSES:
            below = f"{column} = :before OR substr({column}, 1, :length + 1) = :before || '/'"
            database.execute(
                f"UPDATE {table} SET {column} = :after || substr({column}, :length + 1) WHERE {below}",
                {"before": before, "after": after, "length": len(before)},
            )


def _fetch(database: sqlite3.Connection, old: Path, new: Path) -> None:
    """Copy artifacts that only `old` has: an earlier diptych wrote them there after the project had moved."""
    for table, column in _FOLDERS:
        for (address,) in database.execute(f"SELECT {column} FROM {table}").fetchall():
            source = local_path(address)
            if source is None or not source.is_relative_to(old) or ".." in source.parts or not source.is_dir():
                continue
            target = new / source.relative_to(old)
            if not target.exists():
                with atomic_path(target) as temporary:
                    shutil.copytree(source, temporary, symlinks=True)


def local_path(address: str | None) -> Path | None:
    """Return the absolute path that an address names; None where it names none, or none in the file system."""
    if address is None or not address.startswith((_SCHEME, "/")):
        return None
    return Path(unquote(address.removeprefix(_SCHEME)) if address.startswith(_SCHEME) else address)


@contextmanager
def _alone(workspace: Workspace) -> Iterator[bool]:
    """Tell whether no other process works on the project, and keep it so."""
    if HOLDER in os.environ:
        yield True
        return
    try:
        with FileLock(workspace.local / "lock", timeout=0):
            yield True
    except Timeout:
        yield False
