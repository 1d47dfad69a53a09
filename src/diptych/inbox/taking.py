"""From the inbox into the dataset: a drop that passes validation becomes part of the next version, another nothing.

A taking that is ended short of its end leaves the version before, and the drop is simply taken again.
"""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path

from diptych.config import Params
from diptych.data.captions import CAPTIONS_FILE, Dataset, read_dataset
from diptych.data.growth import Rules
from diptych.data.importing import CocoSource, ImportSummary, import_coco, import_table
from diptych.errors import DiptychError
from diptych.inbox.drops import CAPTIONS, ChangedError, Drop, Inbox
from diptych.inbox.ledger import Taken, note, pending
from diptych.inbox.opening import open_inbox
from diptych.project import dvc
from diptych.project.changing import begin, recover
from diptych.project.dataset import fetch_dataset, record_dataset
from diptych.project.workspace import Workspace

RULES = Rules(keep_split=True, onto_scenes="add")
"""Nobody is there to be asked: what is known stays in its split, and scenes are added to."""
_EXAMPLES = 3
"""Bad rows that a reason names, and things in the inbox that are no drops."""
_OUTSIDE = {"ENOSPC", "EDQUOT", "EFBIG", "EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM"}
"""What the disk or the network may say; it is no fault of the drop."""


class _RefusedError(Exception):
    """The drop's own fault, in plain words."""


def take_drops(workspace: Workspace, params: Params, inbox: str | None, on_line: Callable[[str], None]) -> list[Taken]:
    """Takes the drops of `inbox` (None: that of params.yaml) that are new, by name; returns what became of each.

    The caller holds the workspace. Lines of the validate stage go to `on_line`.

    Raises:
        DiptychError: the inbox, or the dataset, cannot be read; data/ has changes that no version holds; the disk is
            full. The drop at hand is then left for the next time, those before it are in the dataset.
    """
    recover(workspace)
    address = inbox or params.retrain.inbox
    if address is None:
        return []
    opened = open_inbox(workspace, address)
    waiting = pending(workspace, opened.drops())
    strays = opened.strays()
    for stray in strays[:_EXAMPLES]:
        on_line(stray)
    if len(strays) > _EXAMPLES:
        on_line(f"and {len(strays) - _EXAMPLES} more that are no drops")
    if waiting:
        fetch_dataset(workspace)
        # What is wrong with the dataset before must not be put down to a drop.
        dvc.reproduce(workspace, "validate", force=False, on_line=on_line)
    taken = [_take(workspace, params, opened, drop, on_line) for drop in waiting]
    return [one for one in taken if one is not None]


def _take(
    workspace: Workspace, params: Params, inbox: Inbox, drop: Drop, on_line: Callable[[str], None]
) -> Taken | None:
    """What became of the drop; None if it is left for the next time."""
    try:
        if drop.problem:
            raise _RefusedError(drop.problem)
        with inbox.opened(drop) as folder:
            taken = _add(workspace, params, drop, folder, on_line)
        workspace.journal.unlink()
    except ChangedError as error:
        on_line(str(error))
        return None
    except _RefusedError as refusal:
        recover(workspace)
        taken = Taken(drop.name, "refused", str(refusal))
    except BaseException:
        recover(workspace)
        raise
    # After the journal: a kill between the two has the drop looked at again, and found known.
    note(workspace, drop, taken)
    return taken


def _add(workspace: Workspace, params: Params, drop: Drop, folder: Path, on_line: Callable[[str], None]) -> Taken:
    """Makes the drop part of the dataset version.

    Raises:
        _RefusedError: it must not be; the caller goes back to the version before.
    """
    before = read_dataset(workspace.data)
    begin(workspace)
    summary = _import(workspace, drop, folder)
    if not (summary.images_added or summary.captions_added or summary.objects_told):
        return Taken(drop.name, "known")
    record_dataset(workspace)
    _validate(workspace, on_line)
    quarantined = _judge(workspace, params, before, read_dataset(workspace.data))
    return Taken(drop.name, "taken", "", summary.images_added, summary.captions_added, quarantined)


def _import(workspace: Workspace, drop: Drop, folder: Path) -> ImportSummary:
    (captions,) = (folder / name for name in CAPTIONS if name in drop.files)
    images = folder / "images" if (folder / "images").is_dir() else folder
    try:
        if captions.name == CAPTIONS_FILE:
            return import_coco(workspace.data, [CocoSource(captions, images)], RULES)
        return import_table(workspace.data, captions, images, rules=RULES)
    except DiptychError as error:
        if _comes_from_outside(error):
            raise
        raise _RefusedError(str(error).replace(str(folder), drop.name)) from None


def _validate(workspace: Workspace, on_line: Callable[[str], None]) -> None:
    report = workspace.reports / "validation.json"
    # An older report must not speak for a stage that was killed.
    report.unlink(missing_ok=True)
    try:
        dvc.reproduce(workspace, "validate", force=False, on_line=on_line)
    except DiptychError:
        # It is written of a dataset that is refused, and of none where something else went wrong.
        if not report.exists() or not (failures := json.loads(report.read_text(encoding="utf-8"))["failures"]):
            raise
        raise _RefusedError("\n".join(failures)) from None


def _judge(workspace: Workspace, params: Params, before: Dataset, after: Dataset) -> int:
    """How many of the images and captions that are new were quarantined; too many of either are refused."""
    most = params.validate_.max_quarantined_share
    total = 0
    for kind, old, new in (
        ("image", before.images, after.images),
        ("caption", before.annotations, after.annotations),
    ):
        own = {record["id"] for record in new} - {record["id"] for record in old}
        bad = [row for row in _quarantine(workspace, kind) if int(row["id"]) in own]
        total += len(bad)
        if len(bad) > most * len(own):
            named = "; ".join(f"{row['file']}: {row['reason']}" for row in bad[:_EXAMPLES])
            raise _RefusedError(
                f"{len(bad)} of its {len(own)} new {kind}s ({len(bad) / len(own):.1%}) are bad, more than "
                f"validate.max_quarantined_share allows ({most:.1%}): {named}"
            )
    return total


def _quarantine(workspace: Workspace, kind: str) -> list[dict[str, str]]:
    """Rows of this kind that are bad by themselves."""
    from diptych.validation.audit import LEFT_OUT

    with (workspace.reports / "quarantine.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind and row["reason"] != LEFT_OUT]


def _comes_from_outside(error: BaseException | None) -> bool:
    """Whether an import failed by the machine, and not by its source."""
    while error is not None:
        if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _OUTSIDE:
            return True
        error = error.__cause__ or error.__context__
    return False
