"""Changing the dataset: afterwards data/ and data.dvc are both the new version or both the one before.

While the dataset is changed, a journal holds what was recorded before. Whatever ends the change short of its end,
`recover` goes back to that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.errors import DiptychError
from diptych.files import remove, write_json
from diptych.project import dvc
from diptych.project.workspace import Workspace


@contextmanager
def changing(workspace: Workspace) -> Iterator[None]:
    """Undo what the block does to data/ and data.dvc, unless it ends without an exception; the caller holds the
    workspace.

    Raises:
        DiptychError: DVC does not work here, before the block has begun; or what the block raised.
    """
    recover(workspace)
    if not dvc.uses_dvc(workspace):
        yield
        return
    dvc.keep_dataset(workspace)
    begin(workspace)
    try:
        yield
    except BaseException as error:
        _recover_after(workspace, error)
        raise
    workspace.journal.unlink()


def begin(workspace: Workspace) -> None:
    """Write the journal; DVC's cache has what is in data/."""
    recorded = {name: _read(workspace.root / name) for name in ("data.dvc", "dvc.lock")}
    write_json(workspace.journal, {**recorded, "present": workspace.data.exists()})


def recover(workspace: Workspace) -> bool:
    """Go back to the version before, if a change was ended short of its end; return whether it was so.

    Raises:
        DiptychError: DVC's cache does not have that version any more, or DVC does not work here.
    """
    remove(workspace.local / "inbox")
    try:
        before = json.loads(workspace.journal.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    dvc.mend(workspace)
    dvc.go_back(workspace, before["data.dvc"], before["dvc.lock"], present=before.get("present", True))
    workspace.journal.unlink()
    return True


def _recover_after(workspace: Workspace, error: BaseException) -> None:
    """Recover; where that fails too, both reasons are told."""
    try:
        recover(workspace)
    except DiptychError as another:
        if isinstance(error, DiptychError):
            raise DiptychError(f"{error}\n{another}") from error
        # An interrupt stays one.
        error.add_note(str(another))


def _read(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8") if path.exists() else None
