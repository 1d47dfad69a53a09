"""Changes of the dataset as a whole: afterwards data/ and data.dvc are both the new version, or both the old one.

During the change a journal holds the old data.dvc and dvc.lock. If the change does not reach its end, `recover` goes
back to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.errors import DiptychError
from diptych.files import remove, write_json
from diptych.project.dataset import go_back, keep_dataset, uses_dvc
from diptych.project.leftovers import repair
from diptych.project.workspace import Workspace


@contextmanager
def changing(workspace: Workspace) -> Iterator[None]:
    """Undo what the block does to data/ and data.dvc if it raises an exception; the caller holds the workspace.

    Raises:
        DiptychError: DVC does not work here; the block was not begun.
    """
    recover(workspace)
    if not uses_dvc(workspace):
        yield
        return
    keep_dataset(workspace)
    begin(workspace)
    holder = workspace.holder()
    try:
        yield
    except BaseException as error:
        if workspace.holder() in ({}, holder):
            _recover_after(workspace, error)
        raise
    # If .diptych was deleted, the next run holds the workspace by now, and the journal is its own.
    if workspace.holder() in ({}, holder):
        workspace.journal.unlink(missing_ok=True)


def begin(workspace: Workspace) -> None:
    """Write the journal. DVC's cache must have what is in data/."""
    recorded = {name: _read(workspace.root / name) for name in ("data.dvc", "dvc.lock")}
    write_json(workspace.journal, {**recorded, "present": workspace.data.exists()})


def recover(workspace: Workspace) -> bool:
    """Go back to the version before an unfinished change; return whether there was one.

    Raises:
        DiptychError: DVC's cache does not have that version any more, or DVC does not work here.
    """
    remove(workspace.local / "inbox")
    try:
        before = json.loads(workspace.journal.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    repair(workspace)
    go_back(workspace, before["data.dvc"], before["dvc.lock"], present=before.get("present", True))
    workspace.journal.unlink()
    return True


def _recover_after(workspace: Workspace, error: BaseException) -> None:
    """Recover; where that fails too, report both reasons."""
    try:
        recover(workspace)
    except DiptychError as another:
        if isinstance(error, DiptychError):
            raise DiptychError(f"{error}\n{another}") from error
        # An interrupt stays one.
        error.add_note(str(another))


def _read(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8") if path.exists() else None
