"""The validate stage: accepted images and captions of the dataset, a quarantine table and reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Literal

from diptych.config import Params
from diptych.data.captions import CAPTIONS_FILE, Record, check_ids, iterate_records
from diptych.data.cores import worker_count
from diptych.errors import DiptychError
from diptych.files import atomic_path, write_json
from diptych.project.workspace import Workspace
from diptych.validation.audit import Audit, audit, caption_table
from diptych.validation.inspection import Inspection
from diptych.validation.scan import scan_images
from diptych.validation.suites import counted

_log = logging.getLogger(__name__)
_ROW_GROUP = 2**16
"""Number of rows that the Parquet files hold together: what a reader needs at once."""


def run(workspace: Workspace, params: Params) -> None:
    """Write artifacts/manifest.parquet, artifacts/captions.parquet, and the reports on them.

    The reports are validation.json, quarantine.csv and the Data Docs, in reports/.

    Raises:
        DiptychError: the dataset cannot be read, breaks a promise, or has too many bad rows. In the last two cases the
            reports are written and the artifacts are not.
    """
    begin = time.monotonic()
    settings = params.validate_
    next(_records(workspace, "images"))  # a dataset without images is refused for that
    captions = caption_table(_records(workspace, "annotations"))
    images = scan_images(
        workspace.data,
        _records(workspace, "images"),
        max_pixels=settings.max_pixels,
        workers=worker_count(params.threads),
    )
    splits = params.data.splits.names()
    with atomic_path(workspace.reports / "data-docs") as docs:
        inspection = Inspection(docs)
        result = audit(captions, images, settings, splits, inspection)
        del captions, images
        inspection.write_docs()
    _write_reports(workspace, result)
    if result.failures:
        raise _refusal(workspace, result.failures)
    for path, table in ((workspace.manifest, result.manifest), (workspace.captions, result.captions)):
        with atomic_path(path) as temporary:
            table.to_parquet(temporary, index=False, row_group_size=_ROW_GROUP)
    _warn_of_unused(result.summary["images"]["per_split"], splits)
    _log.info("%s in %.1f s.", _describe(result), time.monotonic() - begin)


def _records(workspace: Workspace, table: Literal["images", "annotations"]) -> Iterator[Record]:
    record = None
    for record in iterate_records(workspace.data, table):
        yield check_ids(workspace.data, record)
    if record is None:
        raise DiptychError(f"{workspace.data / CAPTIONS_FILE} has no {table}. Import some with `diptych data import`.")


def _write_reports(workspace: Workspace, result: Audit) -> None:
    write_json(workspace.reports / "validation.json", result.summary)
    with atomic_path(workspace.reports / "quarantine.csv") as temporary:
        result.quarantine.to_csv(temporary, index=False, lineterminator="\n")


def _refusal(workspace: Workspace, failures: list[str]) -> DiptychError:
    return DiptychError(
        "The dataset is refused.\n" + "\n".join(failures) + f"\nAll findings: "
        f"{workspace.reports / 'quarantine.csv'} and {workspace.reports / 'data-docs' / 'index.html'}. "
        "Correct the data, or `validate` and `data.splits` in params.yaml."
    )


def _warn_of_unused(images: Mapping[str, int], splits: list[str]) -> None:
    """Warn of images that the pipeline does not use, since the name of their split may be misspelled."""
    unused = {split: count for split, count in images.items() if split not in splits}
    if unused:
        _log.warning("Images of splits that data.splits does not name are not used: %s.", counted(unused))


def _describe(result: Audit) -> str:
    images, captions = result.summary["images"], result.summary["captions"]
    return (
        f"Accepted {images['accepted']} images and {captions['accepted']} captions, "
        f"quarantined {images['quarantined']} and {captions['quarantined']}, "
        f"found {result.summary['near_duplicate_pairs']} near-duplicate pairs across splits,"
    )
