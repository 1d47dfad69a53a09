"""One pass over all images of a dataset: is each there, whole and readable, and what is it like?"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imagehash
import numpy as np
import pandas as pd

# imagehash imports it at its first hash: once here, instead of once in every process.
import scipy.fftpack  # noqa: F401
from numpy.typing import NDArray

from diptych.data.captions import Dataset, encodable
from diptych.data.images import ImageError, inspect_image
from diptych.data.shards import Member, list_members, read_member
from diptych.data.workers import in_processes
from diptych.progress import progress

_BATCH = 32
"""Images a process takes at a time."""


_log = logging.getLogger(__name__)


class Scanned(NamedTuple):
    """What the file of one image is like; all but `damage` are null where there is damage."""

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    sha256: str | None = None
    phash: str | None = None
    damage: str | None = None


@dataclass(frozen=True)
class _Batch:
    """Images of one task, each with the SHA-256 that captions.json records, if it does."""

    data: Path
    members: list[tuple[Member, str | None]]
    max_pixels: int


def scan_images(data: Path, dataset: Dataset, *, max_pixels: int, workers: int) -> pd.DataFrame:
    """One row an image record, in their order.

    Columns: image_id int64, split (null unless a text), file_name, source; objects (a JSON list of what the image
    shows, null where nothing says so); shard, offset, bytes of the member (null where the shards lack it); width,
    height (pixels, after EXIF orientation), mode, sha256, phash (null where damaged);
    damage (why the file cannot be used, null if it can).

    Raises:
        DiptychError: a shard is damaged, or a process was killed.
    """
    members = {member.name: member for member in list_members(data)}
    table = _records(dataset.images, members)
    there = [
        (members[record["file_name"]], record.get("sha256"))
        for record in dataset.images
        if record["file_name"] in members
    ]
    _mention_unused(dataset, members)
    batches = (_Batch(data, there[start : start + _BATCH], max_pixels) for start in range(0, len(there), _BATCH))
    rows: list[Scanned] = []
    with progress(None, "validate", unit="images", total=len(there)) as bar:
        for batch in in_processes(_scan_batch, batches, workers):
            rows.extend(batch)
            bar.update(len(batch))
    scanned = pd.DataFrame(rows, columns=Scanned._fields, index=table.index[table["shard"].notna()])
    return table.join(scanned)


def near_duplicates(manifest: pd.DataFrame, splits: list[str], distance: int, limit: int) -> tuple[int, list[Any]]:
    """Pairs of images in two of `splits` whose perceptual hashes differ in at most `distance` of 64 bits.

    Returns:
        The number of pairs, and the `limit` closest as {"distance", "first": {...}, "second": {...}}.
    """
    hashes = np.array([int(value, 16) for value in manifest["phash"]], np.uint64)
    rows = {split: np.flatnonzero(manifest["split"] == split) for split in splits}
    pairs = [(first, second) for at, first in enumerate(splits) for second in splits[at + 1 :]]
    found = [_close(hashes, rows[first], rows[second], distance, limit) for first, second in pairs]
    closest = sorted(pair for _, some in found for pair in some)[:limit]
    named = [
        {"distance": bits, "first": _name(manifest, first), "second": _name(manifest, second)}
        for bits, first, second in closest
    ]
    return sum(count for count, _ in found), named


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
    """What an import from COCO instances says is in the image, or its scene."""
    objects, scene = record.get("objects"), record.get("scene")
    if objects is None and isinstance(scene, dict) and isinstance(scene.get("objects"), list):
        objects = [thing.get("shape") for thing in scene["objects"] if isinstance(thing, dict)]
    if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
        return None
    return encodable(json.dumps(objects, ensure_ascii=False))


def _mention_unused(dataset: Dataset, members: dict[str, Member]) -> None:
    unused = members.keys() - {record["file_name"] for record in dataset.images}
    if unused:
        _log.warning("%d image(s) in the shards are not in captions.json, such as %s.", len(unused), min(unused))


def _scan_batch(batch: _Batch) -> list[Scanned]:
    """In a worker."""
    return [_scan(read_member(batch.data, member), sha256, batch.max_pixels) for member, sha256 in batch.members]


def _scan(content: bytes, recorded_sha256: str | None, max_pixels: int) -> Scanned:
    sha256 = hashlib.sha256(content).hexdigest()
    if recorded_sha256 is not None and recorded_sha256 != sha256:
        return Scanned(damage="not the file that was imported: its SHA-256 is another than in captions.json")
    try:
        info, image = inspect_image(content, max_pixels)
    except ImageError as error:
        return Scanned(damage=str(error))
    return Scanned(info.width, info.height, info.mode, sha256, str(imagehash.phash(image)))


def _close(
    hashes: NDArray[np.uint64], first: NDArray[np.intp], second: NDArray[np.intp], distance: int, limit: int
) -> tuple[int, list[tuple[int, int, int]]]:
    """Number of close pairs of rows `first` × `second`, and the `limit` closest as (bits, row, row)."""
    count = 0
    closest: list[tuple[int, int, int]] = []
    for start in range(0, len(first), 256):
        block = first[start : start + 256]
        bits = np.bitwise_count(hashes[block, None] ^ hashes[None, second])
        left, right = np.nonzero(bits <= distance)
        count += len(left)
        order = np.lexsort((second[right], block[left], bits[left, right]))[:limit]
        pairs = zip(bits[left, right][order], block[left][order], second[right][order], strict=True)
        closest = sorted([*closest, *((int(bit), int(one), int(other)) for bit, one, other in pairs)])[:limit]
    return count, closest


def _name(manifest: pd.DataFrame, row: int) -> dict[str, Any]:
    image = manifest.iloc[row]
    return {"image_id": int(image["image_id"]), "split": image["split"], "source": image["source"]}
