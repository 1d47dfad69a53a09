"""One pass over all images of a dataset, which checks and describes each file."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import imagehash
import pandas as pd

# imagehash imports scipy.fftpack at its first hash. Imported here, it is loaded once and not once a process.
import scipy.fftpack  # noqa: F401

from diptych.data.captions import CAPTIONS_FILE, Dataset, Record, encodable
from diptych.data.images import ImageError, inspect_image
from diptych.data.parallel import batch_size, map_shards
from diptych.data.shards import Member, list_members, read_member
from diptych.progress import progress

_log = logging.getLogger(__name__)


class Scanned(NamedTuple):
    """Description of one image file; where `damage` has a reason, all other fields are None."""

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    sha256: str | None = None
    phash: str | None = None
    damage: str | None = None


def scan_images(
    data: Path, dataset: Dataset, *, max_pixels: int, workers: int, records: list[Record] | None = None
) -> pd.DataFrame:
    """Return a table with one row an image record, in the order of the records.

    `records` are those of the dataset to scan, at least one; None: all.

    Columns:

    * image_id int64, split (null unless it is a text), file_name, source;
    * objects: a JSON list of what the image shows, null where the record does not say it;
    * shard, offset, bytes of the shard's member, null where no shard has it;
    * width, height (pixels, after EXIF orientation), mode, sha256, phash, null where the file is damaged;
    * damage: the reason for which the file cannot be used, null if it can.

    Raises:
        DiptychError: a shard is damaged, or a process was killed.
    """
    members = {member.name: member for member in list_members(data)}
    records = dataset.images if records is None else records
    table = _records(records, members)
    present = [
        (members[record["file_name"]], record.get("sha256")) for record in records if record["file_name"] in members
    ]
    _warn_of_unused(dataset, members)
    size, folder = batch_size(), data.absolute()
    batches = (present[start : start + size] for start in range(0, len(present), size))
    scan = partial(_scan_batch, folder, max_pixels)
    rows: list[Scanned] = []
    with progress(None, "validate", unit="images", total=len(present)) as bar:
        for batch in map_shards(scan, batches, workers, name=_shard_of, inputs=[folder / CAPTIONS_FILE]):
            rows.extend(batch)
            bar.update(len(batch))
    scanned = pd.DataFrame(rows, columns=Scanned._fields, index=table.index[table["shard"].notna()])
    return table.join(scanned)


def _records(images: list[dict[str, Any]], members: dict[str, Member]) -> pd.DataFrame:
    rows = []
    for record in images:
        member = members.get(record["file_name"])
        split = record.get("split")
        rows.append(
            {
                "image_id": record["id"],
                "split": encodable(split) if isinstance(split, str) else None,
                "file_name": encodable(record["file_name"]),
                "source": encodable(str(record.get("source", record["file_name"]))),
                "objects": _objects(record),
                "shard": member and member.shard,
                "offset": member and member.offset,
                "bytes": member and member.size,
            }
        )
    return pd.DataFrame(rows)


def _objects(record: dict[str, Any]) -> str | None:
    """Return what the image shows: the objects that an import from COCO instances recorded, or those of its scene."""
    objects, scene = record.get("objects"), record.get("scene")
    if objects is None and isinstance(scene, dict) and isinstance(scene.get("objects"), list):
        objects = [thing.get("shape") for thing in scene["objects"] if isinstance(thing, dict)]
    if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
        return None
    return encodable(json.dumps(objects, ensure_ascii=False))


def _warn_of_unused(dataset: Dataset, members: dict[str, Member]) -> None:
    unused = members.keys() - {record["file_name"] for record in dataset.images}
    if unused:
        _log.warning("%d image(s) in the shards are not in captions.json, such as %s.", len(unused), min(unused))


def _scan_batch(data: Path, max_pixels: int, members: list[tuple[Member, str | None]]) -> list[Scanned]:
    """Scan images, each of which has the SHA-256 that captions.json records, if there is one."""
    return [_scan(read_member(data, member), sha256, max_pixels) for member, sha256 in members]


def _shard_of(members: list[tuple[Member, str | None]]) -> str:
    return members[0][0].shard


def _scan(content: bytes, recorded_sha256: str | None, max_pixels: int) -> Scanned:
    sha256 = hashlib.sha256(content).hexdigest()
    if recorded_sha256 is not None and recorded_sha256 != sha256:
        return Scanned(damage="not the file that was imported: its SHA-256 differs from the one in captions.json")
    try:
        info, image = inspect_image(content, max_pixels)
    except ImageError as error:
        return Scanned(damage=str(error))
    return Scanned(info.width, info.height, info.mode, sha256, str(imagehash.phash(image)))
