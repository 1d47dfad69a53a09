"""What became of each drop. It only saves work: without it every drop is looked at again, and nothing stored twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diptych.files import write_json
from diptych.inbox.drops import Drop
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from diptych.registry.history import Action
    from diptych.registry.registered_model import RegisteredModel

Outcome = Literal["taken", "refused", "known"]
"""known: all of it was in the dataset already."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """What became of a drop; `images` and `captions` are those that it added, `quarantined` those of them set aside."""

    name: str
    outcome: Outcome
    reason: str = ""
    images: int = 0
    captions: int = 0
    quarantined: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def describe(self) -> str:
        """One line for people."""
        if self.outcome == "refused":
            return f"drop {self.name} is refused: {self.reason}"
        if self.outcome == "known":
            return f"drop {self.name} brings nothing new"
        aside = f", of which {self.quarantined:,} are set aside" if self.quarantined else ""
        return f"drop {self.name} brings {self.images:,} images and {self.captions:,} captions{aside}"


def pending(workspace: Workspace, drops: list[Drop]) -> list[Drop]:
    """Those of which the ledger knows nothing, in their order."""
    known = {(entry["name"], entry["fingerprint"]) for entry in _read(workspace)}
    return [drop for drop in drops if (drop.name, drop.fingerprint) not in known]


def note(workspace: Workspace, drop: Drop, taken: Taken) -> None:
    """Keeps what became of a drop."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"name": drop.name, "fingerprint": drop.fingerprint, "outcome": taken.outcome, "reason": taken.reason}
    told = taken.outcome == "taken"
    write_json(_path(workspace), [*_read(workspace), {**entry, "when": when, "told": told}])


def has_untold(workspace: Workspace) -> bool:
    """Whether there are drops that `tell_history` has something to say of."""
    return any(map(_is_untold, _read(workspace)))


def tell_history(workspace: Workspace, model: RegisteredModel) -> None:
    """Adds the drops that brought nothing, refused or known, to what was decided about the model: also those of a run
    that ended before it came to that.
    """
    from diptych.registry.history import Event, record

    entries = _read(workspace)
    for entry in filter(_is_untold, entries):
        action: Action = "drop refused" if entry["outcome"] == "refused" else "drop known"
        why = Taken(entry["name"], entry["outcome"], entry["reason"]).describe()
        record(model, Event(action, None, None, why, when=entry["when"]))
        entry["told"] = True
        write_json(_path(workspace), entries)


def _is_untold(entry: Mapping[str, Any]) -> bool:
    return entry.get("told") is False


def _read(workspace: Workspace) -> list[dict[str, Any]]:
    path = _path(workspace)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [{**entry, "name": entry["name"], "fingerprint": entry["fingerprint"]} for entry in entries]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        log.warning("%s is damaged and begun anew: every drop is looked at again.", path)
        return []


def _path(workspace: Workspace) -> Path:
    return workspace.local / "inbox.json"
