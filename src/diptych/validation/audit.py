"""Judgement of a scanned dataset: accepted rows, quarantined rows, and the promises that the dataset breaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from diptych.config import Validate
from diptych.data.captions import MISSING_WORDS, Record, encodable
from diptych.errors import some_lines
from diptych.validation.inspection import Inspection, Verdict
from diptych.validation.near_duplicates import near_duplicates
from diptych.validation.packing import packed, release_unused
from diptych.validation.suites import caption_promises, dataset_promises, image_promises

LEFT_OUT = "its image is left out"
"""Reason for the quarantine of a sound caption whose image is quarantined."""
_NEAR_DUPLICATE_BITS = 4
"""Largest number of different bits between the 64-bit perceptual hashes of near-duplicates."""
_NEAR_DUPLICATES = 100
"""Number of pairs that validation.json lists, the closest ones."""

_CAPTIONS = {"caption_id": "int64", "image_id": "int64", "caption": "str", "characters": "Int32", "letters": "Int32"}
"""Columns of the captions as they are judged, and their types."""

_MANIFEST = {
    "image_id": "int64",
    "split": "str",
    "file_name": "str",
    "source": "str",
    "objects": "str",
    "shard": "str",
    "offset": "int64",
    "bytes": "int64",
    "width": "int32",
    "height": "int32",
    "mode": "str",
    "sha256": "str",
    "phash": "str",
}
"""Columns of the manifest and their types."""


@dataclass(frozen=True)
class Audit:
    """Outcome of the validation of a dataset.

    Attributes:
        manifest: accepted images, in the order of the dataset.
        captions: accepted captions (caption_id, image_id, caption), grouped by image, in the manifest's order.
        quarantine: rejected images and captions (kind, id, file, split, reason).
        summary: the content of reports/validation.json.
        failures: reasons for which the dataset as a whole is refused, a few lines each; empty if it is accepted.
    """

    manifest: pd.DataFrame
    captions: pd.DataFrame
    quarantine: pd.DataFrame
    summary: dict[str, Any]
    failures: list[str]


def caption_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return a table with one row an annotation, in their order.

    Columns: caption_id, image_id; caption, without surrounding whitespace and halves of surrogate pairs; characters and
    letters, their numbers. Without a text the last three are null, and `letters` is in an empty one.
    """
    return packed(map(_caption_row, records), _CAPTIONS)


def _caption_row(record: Record) -> tuple[int, int, str | None, int | None, int | None]:
    if record["caption"] is None:
        return record["id"], record["image_id"], None, None, None
    text = encodable(record["caption"]).strip()
    return record["id"], record["image_id"], text, len(text), sum(map(str.isalpha, text)) if text else None


def audit(
    captions: pd.DataFrame, images: pd.DataFrame, settings: Validate, splits: list[str], inspection: Inspection
) -> Audit:
    """Judge the tables that `caption_table` and `scan_images` return.

    `splits` are those that the pipeline uses; the Data Docs of `inspection` show the judgements.
    """
    captions = captions.assign(**_of_their_images(captions, images[["source", "split"]], images["image_id"]))
    # Great Expectations copies a column several times. It needs no more than the letters that tell words apart.
    first = images["file_name"].str.slice(0, 1).to_frame()
    judged = captions[["caption_id", "characters", "letters"]].assign(
        caption=captions["caption"].str.slice(0, 1 + max(map(len, MISSING_WORDS))).astype("category"),
        **_of_their_images(captions, first, images["image_id"]),
    )
    verdicts = inspection.judge("captions", judged, caption_promises(settings))
    del judged
    release_unused()
    captions["reason"] = _reasons(captions, verdicts)
    images = _with_judged_columns(images, captions)
    image_verdicts = inspection.judge("images", images, image_promises(settings))
    images["reason"] = _reasons(images, image_verdicts)
    accepted = images[images["reason"] == ""].reset_index(drop=True)
    accepted["splits_with_content"] = _splits_with_content(accepted, splits)
    accepted_verdicts = inspection.judge(
        "accepted_images", accepted, dataset_promises(splits, accepted["split"].value_counts().to_dict())
    )

    tables = {"captions": captions, "images": images, "accepted_images": accepted}
    verdicts = [*verdicts, *image_verdicts, *accepted_verdicts]
    failures = _failures(tables, verdicts, settings)
    without_image = (captions["reason"] == "") & ~captions["image_id"].isin(accepted["image_id"])
    captions.loc[without_image, "reason"] = LEFT_OUT
    manifest = accepted[list(_MANIFEST)].astype(_MANIFEST)
    quarantine = _quarantine(images, captions)
    summary = _summary(tables, verdicts, manifest, splits, failures)
    # Frees what is not needed any more, before the accepted captions are copied.
    del tables, images, accepted
    captions = captions[["caption_id", "image_id", "caption", "reason"]]
    release_unused()
    return Audit(manifest, _accepted_captions(captions, manifest), quarantine, summary, failures)


def _of_their_images(captions: pd.DataFrame, columns: pd.DataFrame, image_ids: pd.Series) -> dict[str, Any]:
    """Return columns of the images for the captions, null where there is no image."""
    is_first = ~image_ids.duplicated()
    positions = pd.Index(image_ids[is_first]).get_indexer(captions["image_id"])
    return {name: columns.loc[is_first, name].array.take(positions, allow_fill=True) for name in columns}


def _with_judged_columns(images: pd.DataFrame, captions: pd.DataFrame) -> pd.DataFrame:
    usable = captions.loc[captions["reason"] == "", "image_id"].value_counts()
    sides = images[["width", "height"]].astype("float64")
    return images.assign(
        captions=images["image_id"].map(usable).fillna(0).astype("int64"),
        shorter_side=sides.min(axis=1),
        aspect_ratio=sides.max(axis=1) / sides.min(axis=1),
    )


def _splits_with_content(accepted: pd.DataFrame, splits: list[str]) -> pd.Series:
    """Return the number of `splits` in which the bytes of each image occur; 0 for an image of another split."""
    used = accepted["split"].isin(splits)
    repeated = accepted[used & accepted["sha256"].duplicated(keep=False)]
    numbers = used.astype("int64")
    numbers[repeated.index] = repeated.groupby("sha256")["split"].transform("nunique")
    return numbers


def _reasons(table: pd.DataFrame, verdicts: list[Verdict]) -> pd.Series:
    """Return the reason for which each row is quarantined; empty where it is accepted."""
    reasons = [""] * len(table)
    for verdict in verdicts:
        if verdict.promise.breaks == "row":
            for row in verdict.rows:
                reason = verdict.promise.reason(table.iloc[row])
                reasons[row] = f"{reasons[row]}; {reason}" if reasons[row] else reason
    return pd.Series(reasons, index=table.index, dtype="str")


def _failures(tables: dict[str, pd.DataFrame], verdicts: list[Verdict], settings: Validate) -> list[str]:
    broken = [
        _broken_promise(tables[verdict.table], verdict)
        for verdict in verdicts
        if not verdict.success and verdict.promise.breaks == "dataset"
    ]
    excessive = [
        _too_many_bad(name, tables[name], settings)
        for name in ("images", "captions")
        if _bad_share(tables[name]) > settings.max_quarantined_share
    ]
    return broken + excessive


def _broken_promise(table: pd.DataFrame, verdict: Verdict) -> str:
    head = f"The {verdict.table.replace('_', ' ')} break a promise of the dataset:"
    return "\n  ".join([head, *_offenders(table, verdict)])


def _offenders(table: pd.DataFrame, verdict: Verdict) -> list[str]:
    """Return the missing values, or else the first rows that break the promise, each with the reason."""
    promise = verdict.promise
    if verdict.missing:
        return [promise.reason(pd.Series({promise.column: value})) for value in verdict.missing]
    return some_lines(verdict.rows, lambda row: _describe(table.iloc[row], promise.reason(table.iloc[row])))


def _bad_share(table: pd.DataFrame) -> float:
    return float((table["reason"] != "").sum()) / max(len(table), 1)


def _too_many_bad(name: str, table: pd.DataFrame, settings: Validate) -> str:
    bad = table[table["reason"] != ""]
    head = (
        f"{len(bad)} of {len(table)} {name} ({_bad_share(table):.1%}) are bad, "
        f"more than validate.max_quarantined_share allows ({settings.max_quarantined_share:.1%}):"
    )
    lines = some_lines(range(len(bad)), lambda row: _describe(bad.iloc[row], bad.iloc[row]["reason"]))
    return "\n  ".join([head, *lines])


def _describe(row: pd.Series, reason: str) -> str:
    kind = "caption" if "caption_id" in row else "image"
    source = row["source"] if isinstance(row["source"], str) else "of an unknown image"
    return f"{kind} {row[kind + '_id']} ({source}): {reason}"


def _accepted_captions(captions: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    rows = np.flatnonzero(captions["reason"] == "")
    positions = pd.Series(manifest.index, index=manifest["image_id"]).groupby(level=0).first()
    order = captions["image_id"].iloc[rows].map(positions).argsort(kind="stable")
    accepted = captions[["caption_id", "image_id", "caption"]].iloc[rows[order]]
    return accepted.reset_index(drop=True)


def _quarantine(images: pd.DataFrame, captions: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for kind, table in (("image", images), ("caption", captions)):
        bad = table[table["reason"] != ""]
        part = bad[[f"{kind}_id", "source", "split", "reason"]].set_axis(["id", "file", "split", "reason"], axis=1)
        part.insert(0, "kind", kind)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _summary(
    tables: dict[str, pd.DataFrame],
    verdicts: Iterable[Verdict],
    manifest: pd.DataFrame,
    splits: list[str],
    failures: list[str],
) -> dict[str, Any]:
    pairs, closest = near_duplicates(manifest, splits, _NEAR_DUPLICATE_BITS, _NEAR_DUPLICATES)
    return {
        "success": not failures,
        "images": _counts(tables["images"]),
        "captions": _counts(tables["captions"]),
        "failures": failures,
        "expectations": [_expectation(tables[verdict.table], verdict) for verdict in verdicts],
        "near_duplicate_pairs": pairs,
        "near_duplicates": closest,
    }


def _counts(table: pd.DataFrame) -> dict[str, Any]:
    splits = table.loc[table["reason"] == "", "split"]
    return {
        "total": len(table),
        "accepted": len(splits),
        "quarantined": len(table) - len(splits),
        "per_split": {split: int(count) for split, count in sorted(splits.value_counts().items())},
    }


def _expectation(table: pd.DataFrame, verdict: Verdict) -> dict[str, Any]:
    promise = verdict.promise
    return {
        "table": verdict.table,
        "expectation": promise.expectation,
        "column": promise.column,
        "options": promise.options,
        "breaks": promise.breaks,
        "success": verdict.success,
        "failed": len(verdict.rows) or len(verdict.missing),
        "examples": [line.strip() for line in _offenders(table, verdict)],
    }
