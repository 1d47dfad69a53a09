"""Ingestion of drops: a drop that passes validation becomes part of the next dataset version; another is refused.

An interrupted ingestion leaves the version before, and the next run ingests the drop.
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
from diptych.data.images_folder import ImagesFolder
from diptych.data.importing import CocoSource, ImportSummary, import_coco, import_table
from diptych.errors import DiptychError, some
from diptych.inbox.drops import CAPTIONS, ChangedError, Drop, Inbox
from diptych.inbox.folder import FolderInbox
from diptych.inbox.ledger import DropResult, new_drops, record_result
from diptych.inbox.s3 import S3Inbox
from diptych.project import dvc
from diptych.project.changing import changing, recover
from diptych.project.dataset import provide_dataset
from diptych.project.growing import growing
from diptych.project.workspace import Workspace
from diptych.remote import S3

RULES = Rules(keep_split=True, onto_scenes="add")
"""Rules that need no answer from a person: known images stay in their split, and drops are added to scenes."""
_EXAMPLES = 3
"""Number of bad rows that a reason names, and of things in the inbox that are no drops."""
_MACHINE_ERRORS = {"ENOSPC", "EDQUOT", "EFBIG", "EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM"}
"""Errors of the disk, the memory or the network, which are no fault of the drop."""


class _RefusedError(DiptychError):
    """A fault of the drop itself."""


def ingest_drops(
    workspace: Workspace, params: Params, inbox: str | None, on_line: Callable[[str], None]
) -> list[DropResult]:
    """Ingest the new drops of `inbox` (None: the inbox of params.yaml), by name, and return their outcomes.

    The caller holds the workspace. Lines of the validate stage go to `on_line`.

    Raises:
        DiptychError: the inbox or the dataset cannot be read, data/ has changes that no version holds, or the disk is
            full. The next run ingests the current drop; those before it are in the dataset.
    """
    recover(workspace)
    address = inbox or params.retrain.inbox
    if address is None:
        return []
    opened, drops = find_drops(workspace, address, on_line)
    if drops:
        provide_dataset(workspace)
        # A fault of the dataset before must not be taken for a fault of a drop.
        dvc.reproduce(workspace, "validate", force=False, on_line=on_line)
    results = [_ingest(workspace, params, opened, drop, on_line) for drop in drops]
    return [result for result in results if result is not None]


def find_drops(workspace: Workspace, address: str, on_line: Callable[[str], None]) -> tuple[Inbox, list[Drop]]:
    """Return the inbox at `address` and its new drops; report to `on_line` what is no drop.

    Raises:
        DiptychError: the inbox cannot be read.
    """
    inbox = open_inbox(workspace, address)
    strays = inbox.strays()
    for stray in strays[:_EXAMPLES]:
        on_line(stray)
    if len(strays) > _EXAMPLES:
        on_line(f"and {len(strays) - _EXAMPLES} more that are no drops")
    return inbox, new_drops(workspace, inbox.drops())


def open_inbox(workspace: Workspace, address: str) -> Inbox:
    """Return the inbox at `address`: a folder (a relative path starts at the project), or s3://bucket/prefix.

    Raises:
        DiptychError: there is no such folder, or s3fs is not installed.
    """
    if address.startswith(S3):
        return S3Inbox(address, workspace.local / "inbox")
    return FolderInbox(workspace.root / address)


def _ingest(
    workspace: Workspace, params: Params, inbox: Inbox, drop: Drop, on_line: Callable[[str], None]
) -> DropResult | None:
    """Return the outcome of the drop; None if the next run reads it again."""
    try:
        if drop.problem:
            raise _RefusedError(drop.problem)
        # `changing` empties the folder that an inbox in S3 fetches into, so it comes first.
        with changing(workspace), inbox.opened(drop) as folder:
            result = _add(workspace, params, drop, folder, on_line)
    except ChangedError as error:
        on_line(str(error))
        return None
    except _RefusedError as refusal:
        result = DropResult(drop.name, "refused", str(refusal))
    # A process that is killed between the two has the next run read the drop again, and find it known.
    record_result(workspace, drop, result)
    return result


def _add(workspace: Workspace, params: Params, drop: Drop, folder: Path, on_line: Callable[[str], None]) -> DropResult:
    """Make the drop part of the dataset version.

    Raises:
        _RefusedError: the drop is bad; the caller goes back to the version before.
    """
    before = read_dataset(workspace.data)
    with growing(workspace) as record:
        summary = _import(workspace, drop, folder)
        if not (summary.images_added or summary.captions_added or summary.objects_changed):
            return DropResult(drop.name, "known")
        record()
    _validate(workspace, on_line)
    quarantined = _judge(workspace, params, before, read_dataset(workspace.data))
    return DropResult(drop.name, "taken", "", summary.images_added, summary.captions_added, quarantined)


def _import(workspace: Workspace, drop: Drop, folder: Path) -> ImportSummary:
    (captions,) = (folder / name for name in CAPTIONS if name in drop.files)
    images = folder / "images" if (folder / "images").is_dir() else folder
    try:
        if captions.name == CAPTIONS_FILE:
            return import_coco(workspace.data, [CocoSource(captions, ImagesFolder(images))], RULES)
        return import_table(workspace.data, captions, ImagesFolder(images), rules=RULES)
    except DiptychError as error:
        if _is_machine_error(error):
            raise
        raise _RefusedError(str(error).replace(str(folder), drop.name)) from None


def _validate(workspace: Workspace, on_line: Callable[[str], None]) -> None:
    report = workspace.reports / "validation.json"
    # A killed stage writes no report: an older one must not be read in its place.
    report.unlink(missing_ok=True)
    try:
        dvc.reproduce(workspace, "validate", force=False, on_line=on_line)
    except DiptychError:
        # The stage reports failures of a dataset that it refuses; another error leaves no report.
        if not report.exists() or not (failures := json.loads(report.read_text(encoding="utf-8"))["failures"]):
            raise
        raise _RefusedError("\n".join(failures)) from None


def _judge(workspace: Workspace, params: Params, before: Dataset, after: Dataset) -> int:
    """Return the number of new images and captions in quarantine.

    Raises:
        _RefusedError: too many of the images or of the captions are.
    """
    limit = params.validate_.max_quarantined_share
    total = 0
    for kind, old, new in (
        ("image", before.images, after.images),
        ("caption", before.annotations, after.annotations),
    ):
        added = {record["id"] for record in new} - {record["id"] for record in old}
        bad = [row for row in _quarantine(workspace, kind) if int(row["id"]) in added]
        total += len(bad)
        if len(bad) > limit * len(added):
            rows = some([f"{row['file']}: {row['reason']}" for row in bad], _EXAMPLES, "; ")
            raise _RefusedError(
                f"{len(bad)} of its {len(added)} new {kind}s ({len(bad) / len(added):.1%}) are bad, more than "
                f"validate.max_quarantined_share allows ({limit:.1%}): {rows}"
            )
    return total


def _quarantine(workspace: Workspace, kind: str) -> list[dict[str, str]]:
    """Return the rows of this kind that are bad by themselves."""
    # It imports pandas.
    from diptych.validation.audit import LEFT_OUT

    with (workspace.reports / "quarantine.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind and row["reason"] != LEFT_OUT]


def _is_machine_error(error: BaseException | None) -> bool:
    """Return whether an import failed because of the machine, and not because of the drop."""
    while error is not None:
        if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _MACHINE_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False
