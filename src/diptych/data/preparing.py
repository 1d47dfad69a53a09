"""Preparation of the accepted images: decoded and resized into files that training maps into memory.

Each shard of the dataset becomes one .npy file. Finished files stay in a cache under a key of their content, so that
only new shards of a dataset are prepared.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import os
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from diptych.config import Preprocess
from diptych.data import image_metadata, images
from diptych.data.accepted import CaptionTexts
from diptych.data.captions import CAPTIONS_FILE
from diptych.data.images import ImageError, open_image, to_pixels
from diptych.data.parallel import batch_size, map_shards
from diptych.data.prepared import FORMAT
from diptych.data.shards import Member, members_of, read_members
from diptych.data.tokenization import encode, vocabulary_facts
from diptych.errors import DiptychError
from diptych.files import file_sha256, write_json
from diptych.progress import progress

CACHED_RUNS = 3
"""Number of runs whose files stay in the cache, which so holds at most this number of prepared datasets."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Batch:
    """Batch of images of one shard; its pixels are written to the file `output` from the byte `start`."""

    shard: str
    members: list[Member]
    output: Path
    start: int


@dataclass(frozen=True, eq=False)
class _Shard:
    """Accepted images of one shard of the dataset, as rows of the manifest, and the cache file for their pixels."""

    stem: str
    rows: pd.DataFrame
    shape: tuple[int, int, int, int]
    cached: Path

    @property
    def temporary(self) -> Path:
        return self.cached.with_name(f".{self.cached.name}.tmp")

    @property
    def starts(self) -> range:
        return range(0, len(self.rows), batch_size())


def prepare_images(
    data: Path, manifest: pd.DataFrame, output: Path, *, cache: Path, settings: Preprocess, workers: int
) -> int:
    """Write `output`/images/*.npy and `output`/images.parquet for the images of `manifest`, in its order.

    Returns:
        The number of pixel files that came from `cache`.

    Raises:
        DiptychError: an image has changed since it was validated, the disk is full, or a process was killed.
            Finished pixel files are in the cache for the next run; incomplete ones are removed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    (output / "images").mkdir(parents=True)
    shards = _plan(manifest, settings, cache)
    missing = [shard for shard in shards if not _is_intact(shard)]
    # Validation recorded the sizes; a larger image has been replaced since.
    max_pixels = int((manifest["width"].astype(np.int64) * manifest["height"]).max())
    if missing:
        _fill(data, missing, settings, max_pixels, workers)
    for shard in shards:
        _link_or_copy(shard.cached, output / "images" / f"{shard.stem}.npy")
    _remove_unused(cache, [shard.cached.name for shard in shards])
    table = manifest[["image_id", "split", "sha256"]].assign(
        shard=manifest["shard"].str.removesuffix(".tar"),
        row=manifest.groupby("shard").cumcount().astype(np.int32),
        file_name=manifest["file_name"],
        source=manifest["source"],
    )
    table.to_parquet(output / "images.parquet", index=False)
    return len(shards) - len(missing)


def prepare_captions(output: Path, *, tokenizer: Path, settings: Preprocess) -> int:
    """Write tokens.npy, offsets.npy and settings.json for the captions.parquet of the prepared dataset `output`.

    Returns:
        The number of captions.
    """
    flat, offsets = encode(tokenizer, CaptionTexts(output / "captions.parquet"), settings.max_tokens)
    np.save(output / "tokens.npy", flat)
    np.save(output / "offsets.npy", offsets)
    vocabulary_size, pad_token_id = vocabulary_facts(tokenizer)
    write_json(
        output / "settings.json",
        {
            "format": FORMAT,
            "image_size": settings.image_size,
            "resize": settings.resize,
            "decoding": _decoding(settings),
            "max_tokens": settings.max_tokens,
            "vocabulary_size": vocabulary_size,
            "pad_token_id": pad_token_id,
        },
    )
    return len(offsets) - 1


def _plan(manifest: pd.DataFrame, settings: Preprocess, cache: Path) -> list[_Shard]:
    side = settings.image_size
    shards = []
    columns = ["shard", "file_name", "offset", "bytes", "sha256"]
    for name, rows in manifest[columns].groupby("shard", sort=False):
        # The key of a cache file is the SHA-256 of everything that its pixels depend on.
        key = hashlib.sha256(json.dumps([_decoding(settings), rows["sha256"].tolist()]).encode()).hexdigest()
        shape = (len(rows), side, side, 3)
        shards.append(_Shard(name.removesuffix(".tar"), rows, shape, cache / f"{key}.npy"))
    return shards


def _decoding(settings: Preprocess) -> str:
    """Return the SHA-256 of the recipe by which files become pixels, including the code."""
    code = [file_sha256(Path(inspect.getfile(module))) for module in (images, image_metadata)]
    recipe = [FORMAT, settings.image_size, settings.resize, PIL.__version__, code]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def _is_intact(shard: _Shard) -> bool:
    """Return whether the cache file of the shard exists and has the right header and size; nothing else is parsed."""
    header = _header(shard)
    try:
        with shard.cached.open("rb") as file:
            intact = file.read(len(header)) == header and os.fstat(file.fileno()).st_size == _file_size(shard)
    except FileNotFoundError:
        return False
    except OSError:
        intact = False
    if not intact:
        _log.warning("%s is damaged and is written again.", shard.cached)
    return intact


def _fill(data: Path, shards: list[_Shard], settings: Preprocess, max_pixels: int, workers: int) -> None:
    """Write the cache files of `shards`; processes begin the next shard before the last one is finished."""
    for leftover in shards[0].cached.parent.glob(".*.tmp"):
        leftover.unlink()
    total = sum(len(shard.rows) for shard in shards)
    batches = (batch for shard in shards for batch in _batches(shard))
    prepare = partial(_prepare, data.absolute(), settings, max_pixels)
    counts = map_shards(prepare, batches, workers, name=attrgetter("shard"), inputs=[data.absolute() / CAPTIONS_FILE])
    try:
        with progress(None, "preprocess", unit="images", total=total) as bar:
            for shard in shards:
                _finish(shard, map(bar.update, islice(counts, len(shard.starts))))
    except OSError as error:
        raise DiptychError(f"{shards[0].cached.parent} cannot be written: {error.strerror}.") from None
    finally:
        counts.close()
        for shard in shards:
            shard.temporary.unlink(missing_ok=True)


def _batches(shard: _Shard) -> Iterator[_Batch]:
    """Create the shard's temporary file in full size, so that a full disk is noticed now, and yield its batches."""
    header = _header(shard)
    with shard.temporary.open("wb") as file:
        file.write(header)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, _file_size(shard))
    image_bytes, all_members = math.prod(shard.shape[1:]), members_of(shard.rows)
    for start in shard.starts:
        members = all_members[start : start + shard.starts.step]
        yield _Batch(shard.stem, members, shard.temporary.absolute(), len(header) + start * image_bytes)


def _header(shard: _Shard) -> bytes:
    """Return the header of the shard's .npy file."""
    content = BytesIO()
    description = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shard.shape}
    np.lib.format.write_array_header_1_0(content, description)
    return content.getvalue()


def _file_size(shard: _Shard) -> int:
    return len(_header(shard)) + math.prod(shard.shape)


def _prepare(data: Path, settings: Preprocess, max_pixels: int, batch: _Batch) -> int:
    """Decode and resize a batch in a worker, write it to its position in the file, and return the number of images."""
    # The file is not mapped: on a full disk a write fails with an error, but a mapped page with a fatal signal.
    with batch.output.open("r+b") as file:
        file.seek(batch.start)
        for member, content in zip(batch.members, read_members(data, batch.members), strict=True):
            image = _open(data / member.shard, member.name, content, max_pixels)
            file.write(to_pixels(image, settings.image_size, settings.resize).tobytes())
    return len(batch.members)


def _open(shard: Path, name: str, content: bytes, max_pixels: int) -> Image.Image:
    try:
        return open_image(content, max_pixels)
    except ImageError as error:
        raise DiptychError(
            f"{name} in {shard} has changed since it was validated ({error}). Run `dvc repro validate`."
        ) from None


def _finish(shard: _Shard, batches: Iterator[object]) -> None:
    """Wait for the batches of the shard, then move its complete file into the cache."""
    deque(batches, maxlen=0)
    with shard.temporary.open("rb") as file:
        os.fsync(file.fileno())
    shard.temporary.replace(shard.cached)


def _link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link; copy the file where the file system does not support links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _remove_unused(cache: Path, used: list[str]) -> None:
    """Remove the cache files that none of the last `CACHED_RUNS` runs used."""
    record = cache / "runs.json"
    try:
        runs = [used, *(run for run in json.loads(record.read_text(encoding="utf-8")) if run != used)][:CACHED_RUNS]
        in_use = {name for run in runs for name in run}
    except (OSError, ValueError, TypeError):
        runs, in_use = [used], set(used)
    write_json(record, runs)
    for path in cache.glob("*.npy"):
        if path.name not in in_use:
            path.unlink()
