"""The question that comes before a run: is there anything to do?

A run repeats its last steps at its end. Where they change nothing, it notes the state that they saw, and the summary of
a run that finds this state again. So the steps themselves are the rules: there is no second set of them that reads the
registry. What needs neither MLflow nor a server (DVC's status, the inbox, what a remote lacks) is asked anew each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import diptych
from diptych.config import Params
from diptych.errors import DiptychError
from diptych.files import write_json
from diptych.inbox.ledger import has_unreported
from diptych.project import dvc, leftovers, pixels
from diptych.project.record import dataset_version
from diptych.project.recording import is_published
from diptych.project.workspace import Workspace
from diptych.registry.address import store_file, tracking_uri

UNCHANGED = "Nothing has changed."
"""Reason of a run that computes nothing."""
_SUMMARY = ("data", "inbox", "why", "stages", "metrics", "version", "tracking_uri", "decision")
"""What a summary consists of."""
_SQLITE_HEADER = 100
"""Bytes at the beginning of a SQLite file; a counter of its changes is among them."""

log = logging.getLogger(__name__)


def find_idle_summary(workspace: Workspace, params: Params, promotion: str, inbox: str | None) -> dict[str, Any] | None:
    """Return the summary of a run that would find nothing to do; None where it may find something, or fail.

    The caller holds the workspace. Arguments are those of the retrain flow.
    """
    try:
        note = json.loads(_path(workspace).read_text(encoding="utf-8"))
        if promotion not in note["promotions"] or note["state"] != _state(workspace, params):
            return None
        if _is_waiting(workspace, params, inbox) or dvc.status(workspace):
            return None
        return {name: note["summary"][name] for name in _SUMMARY}
    except (DiptychError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        # A run without a note, and whatever a run would report.
        log.debug("the flow has to find out what there is to do: %r", error)
        return None


def forget(workspace: Workspace) -> str:
    """Remove the note of an earlier run: this one may change what the note describes.

    Return a digest of the code that this run consists of, for `note_idle`.
    """
    _path(workspace).unlink(missing_ok=True)
    return _code_digest(workspace)


def note_idle(workspace: Workspace, params: Params, code: str) -> None:
    """Repeat the last steps of a run; where they change nothing, note that the next run has nothing to do.

    The trained model is registered. Nothing is noted where MLflow is no file: a server changes without a trace here;
    nor where the code is no longer that of this run.

    Args:
        workspace: the project.
        params: its parameters.
        code: what `forget` has returned at the start of the run.
    """
    from diptych.registry.lifecycle import Promotion, needs_decision
    from diptych.registry.promotion import repair
    from diptych.registry.register import register
    from diptych.registry.registered_model import RegisteredModel

    if (state := _state(workspace, params)) is None:
        return
    registered = register(workspace, params)
    model = RegisteredModel.of(workspace, params)
    repair(model)
    version, champion = model.find(registered.version), model.champion()
    data = dataset_version(workspace) or ""
    decided = [way for way in get_args(Promotion) if not needs_decision(model, version, data, params.gate, way)]
    summary = {
        "data": "in the DVC remote" if pixels.lacks_images(workspace) else "present",
        "inbox": [],
        "why": [UNCHANGED],
        "stages": dict.fromkeys(dvc.STAGES, "reused"),
        "metrics": json.loads((workspace.reports / "metrics.json").read_text(encoding="utf-8")),
        "version": registered.to_json(),
        "tracking_uri": tracking_uri(workspace, params),
        "decision": {"outcome": "not asked", "why": "", "champion": champion.version if champion else None},
    }
    if state == _state(workspace, params) and state["code"] == code:
        write_json(_path(workspace), {"promotions": decided, "state": state, "summary": summary})


def _is_waiting(workspace: Workspace, params: Params, inbox: str | None) -> bool:
    """Return whether something waits for a run, besides what DVC compares and what the state holds."""
    return (
        workspace.journal.exists()
        or any(workspace.unsent.glob("*.json"))
        or has_unreported(workspace)
        or leftovers.are_there(workspace)
        or not is_published(workspace, params)
        or _has_drops(workspace, inbox or params.retrain.inbox)
    )


def _has_drops(workspace: Workspace, address: str | None) -> bool:
    if address is None:
        return False
    # It imports the readers of images.
    from diptych.inbox.ingesting import find_drops

    return bool(find_drops(workspace, address, log.info)[1])


def _state(workspace: Workspace, params: Params) -> dict[str, Any] | None:
    """Return what the last steps of a run read, besides the outputs that DVC compares with dvc.lock.

    None where MLflow is no file.
    """
    uri = tracking_uri(workspace, params)
    if (store := store_file(uri)) is None:
        return None
    return {
        "root": str(workspace.root),
        "files": {name: _digest(workspace.root / name) for name in ("params.yaml", "data.dvc", "dvc.lock")},
        "code": _code_digest(workspace),
        "store": [uri, _stamp(store), _stamp(store.with_name(f"{store.name}-wal"))],
    }


def _stamp(file: Path) -> list[Any] | None:
    """Return values that change with every write to a file of SQLite; None where there is none."""
    try:
        # A network file system has the times of an opened file from its server.
        with file.open("rb") as content:
            status = os.fstat(content.fileno())
            header = content.read(_SQLITE_HEADER).hex()
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, header]


def _code_digest(workspace: Workspace) -> str:
    """Return a digest of the code that a run consists of: the package's, and that of the project's flows."""
    digest = hashlib.sha256()
    for path in _code(Path(diptych.__file__).parent, workspace.root / "flows"):
        digest.update(f"{path} {_digest(path)}\n".encode())
    return digest.hexdigest()


def _code(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*.py"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _path(workspace: Workspace) -> Path:
    return workspace.local / "idle.json"
