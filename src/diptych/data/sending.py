"""Preparation of images that are not on this disk: their pixels are sent to the store that has the images.

A worker prepares a whole shard and sends its file. What the store has already is not prepared again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from diptych.config import Preprocess
from diptych.data.captions import CAPTIONS_FILE
from diptych.data.parallel import map_shards
from diptych.data.prepared_shards import (
    PreparedShard,
    batches_of,
    most_pixels,
    plan,
    prepare_batch,
    recipe_of,
    write_images_table,
)
from diptych.data.stored import DAYS_OF_LEFTOVERS, Sent, Store, copied, find_stored, known_file, stored_files
from diptych.errors import DiptychError, first_line
from diptych.files import atomic_path, remove_older
from diptych.progress import progress

_SCRATCH = "scratch-"
"""First letters of the folders, within the cache, in which workers prepare shards."""
_log = logging.getLogger(__name__)


def send_images(
    data: Path,
    manifest: pd.DataFrame,
    output: Path,
    *,
    prepared: Path,
    record: Path,
    settings: Preprocess,
    workers: int,
) -> int:
    """Send the pixels of the images of `manifest` to the store that has the images; write `output`/images.parquet.

    The store takes the files as those of the folder `prepared`/images.

    Args:
        data: folder of the dataset, which is not on this disk.
        manifest: the accepted images.
        output: folder for the table.
        prepared: folder where the prepared dataset belongs.
        record: file that keeps what was sent, for the next run after one that was interrupted.
        settings: how images become pixels.
        workers: number of processes.

    Returns:
        The number of pixel files that the store had already.

    Raises:
        DiptychError: no store has the dataset, it cannot be read or written, or an image has changed since it was
            validated.
    """
    store = known_file(data / CAPTIONS_FILE).store
    shards = plan(manifest, settings, store.cache)
    send = partial(_send, data.absolute(), settings, most_pixels(manifest))
    try:
        sent = _sent_before(store, {shard.recipe for shard in shards}, prepared, record)
        missing = [shard for shard in shards if shard.recipe not in sent]
        with atomic_path(record) as temporary:
            temporary.write_text("".join(map(_line, sent.items())), encoding="utf-8")
        with record.open("a", encoding="utf-8") as file:
            for entry in _send_all(missing, send, data, workers):
                file.write(_line(entry))
                file.flush()
                sent.update([entry])
    except OSError as error:
        raise DiptychError(f"{error.filename or store.cache} cannot be written: {error.strerror}.") from None
    files = {f"{shard.stem}.npy": Sent(sent[shard.recipe], shard.file_size) for shard in shards}
    store.send_folder((prepared / "images").absolute(), files)
    write_images_table(manifest, output)
    return len(shards) - len(missing)


def _sent_before(store: Store, wanted: set[str], prepared: Path, record: Path) -> dict[str, str]:
    """Return the store's keys of the shards that it has, by their recipes, which are among the `wanted`."""
    keys = {recipe: key for recipe, key in [*_of_last_run(prepared), *_recorded(record)] if recipe in wanted}
    lacking = store.lacking(set(keys.values()))
    return {recipe: key for recipe, key in keys.items() if key not in lacking}


def _of_last_run(prepared: Path) -> Iterator[tuple[str, str]]:
    """Yield the recipes of the shards of the prepared dataset that the store has, with their keys there.

    Its tables are read from there too: those on this disk may be of a run that was not recorded.
    """
    try:
        table, settings = find_stored(prepared / "images.parquet"), find_stored(prepared / "settings.json")
        keys = {file.path.stem: file.key for file in stored_files(prepared / "images")}
        if not (table and settings and keys):
            return
        decoding = json.loads(copied(settings).read_text(encoding="utf-8"))["decoding"]
        images = pd.read_parquet(copied(table), columns=["shard", "sha256"])
    except (DiptychError, OSError, ValueError, LookupError, TypeError) as error:
        _log.warning("What the last run recorded is not used again: %s", first_line(error))
        return
    for stem, rows in images.groupby("shard", sort=False):
        if stem in keys:
            yield recipe_of(decoding, rows["sha256"].tolist()), keys[stem]


def _recorded(record: Path) -> Iterator[tuple[str, str]]:
    """Yield what a run has noted; its last line is cut off where it was killed."""
    with suppress(FileNotFoundError):
        for line in record.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                recipe, key = line.split()
                yield recipe, key


def _line(entry: tuple[str, str]) -> str:
    return " ".join(entry) + "\n"


def _send_all(
    shards: list[PreparedShard], send: Callable[[PreparedShard], str], data: Path, workers: int
) -> Iterator[tuple[str, str]]:
    """Have shards prepared and sent; yield the recipe of each one, and its key in the store."""
    keys = map_shards(send, shards, workers, name=attrgetter("stem"), inputs=[data.absolute() / CAPTIONS_FILE])
    try:
        with progress(None, "preprocess", unit="images", total=sum(len(shard.rows) for shard in shards)) as bar:
            for shard, key in zip(shards, keys, strict=True):
                bar.update(len(shard.rows))
                yield shard.recipe, key
    finally:
        keys.close()


def _send(data: Path, settings: Preprocess, max_pixels: int, shard: PreparedShard) -> str:
    """Prepare a shard in a worker, send it, and return its key in the store."""
    store = known_file(data / CAPTIONS_FILE).store
    store.cache.mkdir(parents=True, exist_ok=True)
    remove_older(store.cache.glob(f"{_SCRATCH}*"), DAYS_OF_LEFTOVERS)
    # Projects may share a cache, and prepare the same images at the same time.
    with TemporaryDirectory(prefix=_SCRATCH, dir=store.cache) as scratch:
        filled = replace(shard, path=Path(scratch, shard.path.name))
        for batch in batches_of(filled):
            prepare_batch(data, settings, max_pixels, batch)
        return store.send(filled.temporary)
