"""Preparation of images into the store that has their files: neither are on this disk.

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
    key_of,
    most_pixels,
    plan,
    prepare_batch,
    write_images_table,
)
from diptych.data.stored import Sent, Store, copied, find_stored, stored_files
from diptych.errors import DiptychError, first_line
from diptych.files import atomic_path, remove_unused
from diptych.progress import progress

_SCRATCH = "scratch-"
"""First letters of the folders, within the cache, in which workers prepare shards."""
_DAYS_OF_SCRATCH = 1.0
"""Time after which such a folder is taken for left by a worker that was killed."""
_log = logging.getLogger(__name__)


def send_images(
    data: Path, manifest: pd.DataFrame, output: Path, *, place: Path, record: Path, settings: Preprocess, workers: int
) -> int:
    """Send the pixels of the images of `manifest` to the store that has them; write `output`/images.parquet.

    The store takes the files as those of the folder `place`/images.

    Args:
        data: folder of the dataset, which is not on this disk.
        manifest: the accepted images.
        output: folder for the table.
        place: folder where the prepared dataset belongs.
        record: file that keeps the names of what was sent, for the next run after one that was interrupted.
        settings: how images become pixels.
        workers: number of processes.

    Returns:
        The number of pixel files that the store had already.

    Raises:
        DiptychError: no store has the dataset, it cannot be read or written, or an image has changed since it was
            validated.
    """
    store = _store_of(data)
    remove_unused(store.cache.glob(f"{_SCRATCH}*"), _DAYS_OF_SCRATCH)
    shards = plan(manifest, settings, store.cache.absolute())
    sent = _sent_before(store, {shard.path.stem for shard in shards}, place, record)
    missing = [shard for shard in shards if shard.path.stem not in sent]
    send = partial(_send, data.absolute(), settings, most_pixels(manifest))
    with atomic_path(record) as temporary:
        temporary.write_text("".join(map(_line, sent.items())), encoding="utf-8")
    with record.open("a", encoding="utf-8") as file:
        for name in _send_all(missing, send, data, workers):
            file.write(_line(name))
            file.flush()
            sent.update([name])
    files = {f"{shard.stem}.npy": Sent(sent[shard.path.stem], shard.file_size) for shard in shards}
    store.send_folder((place / "images").absolute(), files)
    write_images_table(manifest, output)
    return len(shards) - len(missing)


def _store_of(data: Path) -> Store:
    if not (captions := find_stored(data / CAPTIONS_FILE)):
        raise DiptychError(f"{data} is neither on this disk nor in a store that is known: `dvc pull` fetches it.")
    return captions.store


def _sent_before(store: Store, wanted: set[str], place: Path, record: Path) -> dict[str, str]:
    """Return the names in the store of the `wanted` shards that it has, by their keys."""
    names = {key: name for key, name in [*_of_last_run(place), *_recorded(record)] if key in wanted}
    lacking = store.lacking(set(names.values()))
    return {key: name for key, name in names.items() if name not in lacking}


def _of_last_run(place: Path) -> Iterator[tuple[str, str]]:
    """Yield the keys of the shards that the prepared dataset in the store has, with their names in the store.

    Its tables are read from there too: those on this disk may be of a run that was not recorded.
    """
    try:
        table, settings = find_stored(place / "images.parquet"), find_stored(place / "settings.json")
        names = {file.path.stem: file.key for file in stored_files(place / "images")}
        if not (table and settings and names):
            return
        recipe = json.loads(copied(settings).read_text(encoding="utf-8"))["decoding"]
        images = pd.read_parquet(copied(table), columns=["shard", "sha256"])
    except (DiptychError, OSError, ValueError, LookupError, TypeError) as error:
        _log.warning("Nothing of the last run is used again: %s", first_line(error))
        return
    for stem, rows in images.groupby("shard", sort=False):
        if stem in names:
            yield key_of(recipe, rows["sha256"].tolist()), names[stem]


def _recorded(record: Path) -> Iterator[tuple[str, str]]:
    """Yield what a run has noted; its last line is cut off where it was killed."""
    with suppress(FileNotFoundError):
        for line in record.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                key, name = line.split()
                yield key, name


def _line(name: tuple[str, str]) -> str:
    return " ".join(name) + "\n"


def _send_all(
    shards: list[PreparedShard], send: Callable[[PreparedShard], str], data: Path, workers: int
) -> Iterator[tuple[str, str]]:
    """Have shards prepared and sent; yield the key of each one, and its name in the store."""
    names = map_shards(send, shards, workers, name=attrgetter("stem"), inputs=[data.absolute() / CAPTIONS_FILE])
    try:
        with progress(None, "preprocess", unit="images", total=sum(len(shard.rows) for shard in shards)) as bar:
            for shard, name in zip(shards, names, strict=True):
                bar.update(len(shard.rows))
                yield shard.path.stem, name
    except OSError as error:
        raise DiptychError(f"{error.filename} cannot be written: {error.strerror}.") from None
    finally:
        names.close()


def _send(data: Path, settings: Preprocess, max_pixels: int, shard: PreparedShard) -> str:
    """Prepare a shard in a worker, send it, and return its name in the store."""
    store = _store_of(data)
    store.cache.mkdir(parents=True, exist_ok=True)
    # Projects may share a cache, and prepare the same images at the same time.
    with TemporaryDirectory(prefix=_SCRATCH, dir=store.cache) as scratch:
        filled = replace(shard, path=Path(scratch, shard.path.name))
        for batch in batches_of(filled):
            prepare_batch(data, settings, max_pixels, batch)
        return store.send(filled.temporary)
