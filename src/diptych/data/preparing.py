"""Preparation of the accepted images: decoded and resized into files that training maps into memory.

Each shard of the dataset becomes one .npy file. Finished files stay in a cache under a key of their content, so that
only new shards of a dataset are prepared.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd

from diptych.config import Preprocess
from diptych.data.accepted import CaptionTexts
from diptych.data.captions import CAPTIONS_FILE
from diptych.data.parallel import map_shards
from diptych.data.prepared import FORMAT
from diptych.data.prepared_shards import (
    Batch,
    PreparedShard,
    batches_of,
    decoding,
    most_pixels,
    plan,
    prepare_batch,
    write_images_table,
)
from diptych.data.tokenization import encode, vocabulary_facts
from diptych.errors import DiptychError
from diptych.files import write_json
from diptych.progress import progress

CACHED_RUNS = 3
"""Number of runs whose files stay in the cache, which so holds at most this number of prepared datasets."""

_log = logging.getLogger(__name__)


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
    shards = plan(manifest, settings, cache)
    missing = [shard for shard in shards if not _is_intact(shard)]
    if missing:
        _fill(missing, partial(prepare_batch, data.absolute(), settings, most_pixels(manifest)), data, workers)
    for shard in shards:
        _link_or_copy(shard.path, output / "images" / f"{shard.stem}.npy")
    _remove_unused(cache, [shard.path.name for shard in shards])
    write_images_table(manifest, output)
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
            "decoding": decoding(settings),
            "max_tokens": settings.max_tokens,
            "vocabulary_size": vocabulary_size,
            "pad_token_id": pad_token_id,
        },
    )
    return len(offsets) - 1


def _is_intact(shard: PreparedShard) -> bool:
    """Return whether the cache file of the shard exists and has the right header and size; nothing else is parsed."""
    header = shard.header
    try:
        with shard.path.open("rb") as file:
            intact = file.read(len(header)) == header and os.fstat(file.fileno()).st_size == shard.file_size
    except FileNotFoundError:
        return False
    except OSError:
        intact = False
    if not intact:
        _log.warning("%s is damaged and is written again.", shard.path)
    return intact


def _fill(shards: list[PreparedShard], prepare: Callable[[Batch], int], data: Path, workers: int) -> None:
    """Write the cache files of `shards`; processes begin the next shard before the last one is finished."""
    for leftover in shards[0].path.parent.glob(".*.tmp"):
        leftover.unlink()
    total = sum(len(shard.rows) for shard in shards)
    batches = (batch for shard in shards for batch in batches_of(shard))
    counts = map_shards(prepare, batches, workers, name=attrgetter("shard"), inputs=[data.absolute() / CAPTIONS_FILE])
    try:
        with progress(None, "preprocess", unit="images", total=total) as bar:
            for shard in shards:
                _finish(shard, map(bar.update, islice(counts, len(shard.starts))))
    except OSError as error:
        raise DiptychError(f"{shards[0].path.parent} cannot be written: {error.strerror}.") from None
    finally:
        counts.close()
        for shard in shards:
            shard.temporary.unlink(missing_ok=True)


def _finish(shard: PreparedShard, batches: Iterator[object]) -> None:
    """Wait for the batches of the shard, then move its complete file into the cache."""
    deque(batches, maxlen=0)
    with shard.temporary.open("rb") as file:
        os.fsync(file.fileno())
    shard.temporary.replace(shard.path)


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
