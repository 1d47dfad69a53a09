"""Ledger of the drops that were handled.

It only saves work: without it every drop is read again, and nothing is stored twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diptych.files import write_json
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from diptych.inbox.drops import Drop
    from diptych.registry.registered_model import RegisteredModel

Outcome = Literal["taken", "refused", "known"]
"""Outcome of a drop. taken: it was ingested; known: the dataset had all of it already."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DropResult:
    """Outcome of a drop, how many images and captions it added, and how many of these are in quarantine."""

    name: str
    outcome: Outcome
    reason: str = ""
    images: int = 0
    captions: int = 0
    quarantined: int = 0

    def describe(self) -> str:
        """Return one line for people."""
        if self.outcome == "refused":
            return f"drop {self.name} is refused: {self.reason}"
        if self.outcome == "known":
            return f"drop {self.name} brings nothing new"
        aside = f", of which {self.quarantined:,} are set aside" if self.quarantined else ""
        return f"drop {self.name} brings {self.images:,} images and {self.captions:,} captions{aside}"


def new_drops(workspace: Workspace, drops: list[Drop]) -> list[Drop]:
    """Return the drops that the ledger does not have, in their order."""
    known = {(entry["name"], entry["fingerprint"]) for entry in _read(workspace)}
    return [drop for drop in drops if (drop.name, drop.fingerprint) not in known]


def record_result(workspace: Workspace, drop: Drop, result: DropResult) -> None:
    """Add the outcome of a drop to the ledger."""
    entry = {
        "name": drop.name,
        "fingerprint": drop.fingerprint,
        "outcome": result.outcome,
        "reason": result.reason,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        # The history of the model has no events of ingested drops.
        "told": result.outcome == "taken",
    }
    write_json(_path(workspace), [*_read(workspace), entry])


def has_unreported(workspace: Workspace) -> bool:
    """Return whether there are drops that `report_to_history` has to report."""
    return any(map(_is_unreported, _read(workspace)))


def report_to_history(workspace: Workspace, model: RegisteredModel) -> None:
    """Add refused and known drops to the history of the model, also those that an earlier run did not report."""
    from diptych.registry.history import Event, record

    entries = _read(workspace)
    for entry in filter(_is_unreported, entries):
        reason = DropResult(entry["name"], entry["outcome"], entry["reason"]).describe()
        action: Any = "drop refused" if entry["outcome"] == "refused" else "drop known"
        record(model, Event(action, None, None, reason, when=entry["when"]))
        entry["told"] = True
        write_json(_path(workspace), entries)


def _is_unreported(entry: Mapping[str, Any]) -> bool:
    return entry.get("told") is False


def _read(workspace: Workspace) -> list[dict[str, Any]]:
    path = _path(workspace)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        # An entry without these two is damaged.
        return [{**entry, "name": entry["name"], "fingerprint": entry["fingerprint"]} for entry in entries]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        log.warning("%s is damaged. A new ledger begins, and every drop is read again.", path)
        return []


def _path(workspace: Workspace) -> Path:
    return workspace.local / "inbox.json"
