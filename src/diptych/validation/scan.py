"""One pass over all images of a dataset, which checks and describes each file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import imagehash
import pandas as pd

# imagehash imports scipy.fftpack at its first hash. Imported here, it is loaded once and not once a process.
import scipy.fftpack  # noqa: F401

from diptych.data.captions import CAPTIONS_FILE, Record, encodable
from diptych.data.images import ImageError, inspect_image
from diptych.data.parallel import batch_size, map_shards
from diptych.data.shards import Member, list_members, members_of, read_members
from diptych.progress import progress
from diptych.validation.packing import packed

_log = logging.getLogger(__name__)
_RECORDED = {
    "image_id": "int64",
    "split": "str",
    "file_name": "str",
    "source": "str",
    "objects": "str",
    "shard": "str",
    "offset": "Int64",
    "bytes": "Int64",
    "recorded": "str",
}
"""Columns that captions.json and the shards give; `recorded` is the SHA-256 that the file should have."""
_SCANNED = {"width": "Int64", "height": "Int64", "mode": "str", "sha256": "str", "phash": "str", "damage": "str"}
_Batch = list[tuple[Member, str | None]]


class Scanned(NamedTuple):
    """Description of one image file; where `damage` has a reason, all other fields are None."""

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    sha256: str | None = None
    phash: str | None = None
    damage: str | None = None


def scan_images(
    data: Path, records: Iterable[Record], *, max_pixels: int, workers: int, others: Container[str] = ()
) -> pd.DataFrame:
    """Return a table with one row an image record, in the order of the records.

    `others` are file names that the dataset's other records have; members with them are expected.

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
    table = packed(_described(records, members), _RECORDED)
    _warn_of_unused(table, members, others)
    del members  # half a kilobyte each
    present = table[table["shard"].notna()]
    size, folder = batch_size(), data.absolute()
    batches = (_batch_of(present.iloc[start : start + size]) for start in range(0, len(present), size))
    scan = partial(_scan_batch, folder, max_pixels)
    done = map_shards(scan, batches, workers, name=_shard_of, inputs=[folder / CAPTIONS_FILE])
    with progress(chain.from_iterable(done), "validate", unit="images", total=len(present)) as rows:
        scanned = packed(rows, _SCANNED)
    return table.drop(columns="recorded").join(scanned.set_index(present.index))


def _described(records: Iterable[Record], members: Mapping[str, Member]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the records, with the columns `_RECORDED`."""
    for record in records:
        member = members.get(record["file_name"])
        split, sha256 = record.get("split"), record.get("sha256")
        yield (
            record["id"],
            encodable(split) if isinstance(split, str) else None,
            encodable(record["file_name"]),
            encodable(str(record.get("source", record["file_name"]))),
            _objects(record),
            *((member.shard, member.offset, member.size) if member else (None, None, None)),
            None if sha256 is None else encodable(str(sha256)),
        )


def _objects(record: dict[str, Any]) -> str | None:
    """Return what the image shows: the objects that an import from COCO instances recorded, or those of its scene."""
    objects, scene = record.get("objects"), record.get("scene")
    if objects is None and isinstance(scene, dict) and isinstance(scene.get("objects"), list):
        objects = [thing.get("shape") for thing in scene["objects"] if isinstance(thing, dict)]
    if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
        return None
    return encodable(json.dumps(objects, ensure_ascii=False))


def _warn_of_unused(table: pd.DataFrame, members: Mapping[str, Member], others: Container[str]) -> None:
    unused = [name for name in members.keys() - set(table["file_name"]) if name not in others]
    if unused:
        _log.warning("%d image(s) in the shards are not in captions.json, such as %s.", len(unused), min(unused))


def _batch_of(rows: pd.DataFrame) -> _Batch:
    recorded = [None if pd.isna(sha256) else sha256 for sha256 in rows["recorded"]]
    return list(zip(members_of(rows), recorded, strict=True))


def _scan_batch(data: Path, max_pixels: int, batch: _Batch) -> list[Scanned]:
    """Scan images, each of which has the SHA-256 that captions.json records, if there is one."""
    contents = read_members(data, [member for member, _ in batch])
    return [_scan(content, sha256, max_pixels) for content, (_, sha256) in zip(contents, batch, strict=True)]


def _shard_of(batch: _Batch) -> str:
    return batch[0][0].shard


def _scan(content: bytes, recorded_sha256: str | None, max_pixels: int) -> Scanned:
    sha256 = hashlib.sha256(content).hexdigest()
    if recorded_sha256 is not None and recorded_sha256 != sha256:
        return Scanned(damage="not the file that was imported: its SHA-256 differs from the one in captions.json")
    try:
        info, image = inspect_image(content, max_pixels)
    except ImageError as error:
        return Scanned(damage=str(error))
    return Scanned(info.width, info.height, info.mode, sha256, str(imagehash.phash(image)))
