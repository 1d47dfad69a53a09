"""From what a scan saw to what is accepted, what is quarantined and whether the dataset keeps its promises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from diptych.config import Validate
from diptych.data.captions import Dataset, encodable
from diptych.validation.inspection import Inspection, Verdict
from diptych.validation.scan import near_duplicates
from diptych.validation.suites import Promise, caption_promises, dataset_promises, image_promises

LEFT_OUT = "its image is left out"
_EXAMPLES = 5
"""Offenders named in a message and in validation.json."""
_NEAR_DUPLICATES = 100
"""Pairs listed in validation.json, the closest ones."""

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


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        manifest: accepted images, in the dataset's order.
        captions: accepted captions (caption_id, image_id, caption), grouped by image, in the manifest's order.
        quarantine: what is left out (kind, id, file, split, reason).
        summary: the content of reports/validation.json.
        failures: why the dataset as a whole is refused, a few lines each; empty if it is not.
    """

    manifest: pd.DataFrame
    captions: pd.DataFrame
    quarantine: pd.DataFrame
    summary: dict[str, Any]
    failures: list[str]


def audit(
    dataset: Dataset, images: pd.DataFrame, settings: Validate, splits: list[str], inspection: Inspection
) -> Audit:
    """Judges the scanned `images` and the captions of `dataset`, of which the named `splits` play a role."""
    captions = _caption_table(dataset, images)
    verdicts = inspection.judge("captions", captions, caption_promises(settings))
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
    failures = [_failure(tables[one.table], one) for one in verdicts if not one.success and one.promise.breaks != "row"]
    failures += [line for table in ("images", "captions") for line in _too_many(table, tables[table], settings)]
    left_out = (captions["reason"] == "") & ~captions["image_id"].isin(accepted["image_id"])
    captions.loc[left_out, "reason"] = LEFT_OUT
    manifest = accepted[list(_MANIFEST)].astype(_MANIFEST)
    return Audit(
        manifest=manifest,
        captions=_accepted_captions(captions, manifest),
        quarantine=_quarantine(images, captions),
        summary=_summary(tables, verdicts, manifest, splits, settings, failures),
        failures=failures,
    )


def _caption_table(dataset: Dataset, images: pd.DataFrame) -> pd.DataFrame:
    """One row an annotation; the text without surrounding whitespace, and without halves of surrogate pairs."""
    texts = [None if one["caption"] is None else encodable(one["caption"]).strip() for one in dataset.annotations]
    table = pd.DataFrame(
        {
            "caption_id": [one["id"] for one in dataset.annotations],
            "image_id": [one["image_id"] for one in dataset.annotations],
            "caption": texts,
            "characters": [None if text is None else len(text) for text in texts],
            "letters": [sum(map(str.isalpha, text)) if text else None for text in texts],
        }
    )
    known = images.drop_duplicates("image_id").set_index("image_id")
    return table.join(known[["file_name", "source", "split"]], on="image_id")


def _with_judged_columns(images: pd.DataFrame, captions: pd.DataFrame) -> pd.DataFrame:
    usable = captions[captions["reason"] == ""].groupby("image_id").size()
    sides = images[["width", "height"]].astype("float64")
    return images.assign(
        captions=images["image_id"].map(usable).fillna(0).astype("int64"),
        shorter_side=sides.min(axis=1),
        aspect_ratio=sides.max(axis=1) / sides.min(axis=1),
    )


def _splits_with_content(accepted: pd.DataFrame, splits: list[str]) -> pd.Series:
    """In how many of `splits` the bytes of each image occur."""
    concerned = accepted[accepted["split"].isin(splits)]
    counts = concerned.groupby("sha256")["split"].nunique()
    return accepted["sha256"].map(counts).where(accepted["split"].isin(splits), 0).fillna(0).astype("int64")


def _reasons(table: pd.DataFrame, verdicts: list[Verdict]) -> pd.Series:
    """Why each row is quarantined; empty where it is not."""
    reasons = [""] * len(table)
    for verdict in verdicts:
        if verdict.promise.breaks == "row":
            for row in verdict.rows:
                reason = verdict.promise.reason(table.iloc[row])
                reasons[row] = f"{reasons[row]}; {reason}" if reasons[row] else reason
    return pd.Series(reasons, index=table.index, dtype="str")


def _failure(table: pd.DataFrame, verdict: Verdict) -> str:
    return "\n".join(
        [f"The {verdict.table.replace('_', ' ')} break a promise of the dataset:", *_offenders(table, verdict)]
    )


def _offenders(table: pd.DataFrame, verdict: Verdict) -> list[str]:
    """The first rows that break the promise, or what is missing, each with the reason."""
    promise = verdict.promise
    if verdict.missing:
        return [f"  {promise.reason(pd.Series({promise.column: value}))}" for value in verdict.missing]
    rows = (table.iloc[row] for row in verdict.rows[:_EXAMPLES])
    return _shorten([f"  {_describe(row)}: {promise.reason(row)}" for row in rows], len(verdict.rows))


def _too_many(name: str, table: pd.DataFrame, settings: Validate) -> list[str]:
    """The complaint that more rows were quarantined than the settings allow, if so."""
    bad = table[table["reason"] != ""]
    share = len(bad) / max(len(table), 1)
    if share <= settings.max_quarantined_share:
        return []
    head = (
        f"{len(bad)} of {len(table)} {name} ({share:.1%}) are bad, "
        f"more than validate.max_quarantined_share allows ({settings.max_quarantined_share:.1%}):"
    )
    rows = (row for _, row in bad.head(_EXAMPLES).iterrows())
    return ["\n".join([head, *_shorten([f"  {_describe(row)}: {row['reason']}" for row in rows], len(bad))])]


def _shorten(lines: list[str], total: int) -> list[str]:
    return [*lines, f"  … and {total - len(lines)} more"] if total > len(lines) else lines


def _describe(row: pd.Series) -> str:
    kind = "caption" if "caption_id" in row else "image"
    source = row["source"] if isinstance(row["source"], str) else "of an unknown image"
    return f"{kind} {row[kind + '_id']} ({source})"


def _accepted_captions(captions: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    kept = captions[captions["reason"] == ""]
    position = kept["image_id"].map(pd.Series(manifest.index, index=manifest["image_id"]).groupby(level=0).first())
    kept = kept.iloc[position.argsort(kind="stable")].reset_index(drop=True)
    return kept[["caption_id", "image_id", "caption"]].astype(
        {"caption_id": "int64", "image_id": "int64", "caption": "str"}
    )


def _quarantine(images: pd.DataFrame, captions: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for kind, table in (("image", images), ("caption", captions)):
        bad = table[table["reason"] != ""]
        parts.append(
            pd.DataFrame(
                {
                    "kind": kind,
                    "id": bad[f"{kind}_id"],
                    "file": bad["source"],
                    "split": bad["split"],
                    "reason": bad["reason"],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _summary(
    tables: dict[str, pd.DataFrame],
    verdicts: Iterable[Verdict],
    manifest: pd.DataFrame,
    splits: list[str],
    settings: Validate,
    failures: list[str],
) -> dict[str, Any]:
    pairs, closest = near_duplicates(manifest, splits, settings.near_duplicate_distance, _NEAR_DUPLICATES)
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
    kept = table[table["reason"] == ""]
    return {
        "total": len(table),
        "accepted": len(kept),
        "quarantined": len(table) - len(kept),
        "per_split": {split: int(count) for split, count in sorted(kept["split"].value_counts().items())},
    }


def _expectation(table: pd.DataFrame, verdict: Verdict) -> dict[str, Any]:
    promise: Promise = verdict.promise
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
