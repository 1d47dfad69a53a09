"""Preparation of images into the store that has their files: neither are on this disk.

A worker prepares a whole shard and sends its file. What the store has already is not prepared again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path

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
from diptych.errors import DiptychError
from diptych.files import atomic_path, remove
from diptych.progress import progress


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
    # Projects may share a cache.
    scratch = (store.cache / f"scratch-{hashlib.sha256(os.fsencode(data.absolute())).hexdigest()[:12]}").absolute()
    remove(scratch)
    shards = plan(manifest, settings, scratch)
    sent = _sent_before(store, {shard.path.stem for shard in shards}, place, record)
    missing = [shard for shard in shards if shard.path.stem not in sent]
    send = partial(_send, data.absolute(), settings, most_pixels(manifest))
    with atomic_path(record) as temporary:
        temporary.write_text("".join(map(_line, sent.items())))
    with record.open("a") as file:
        for name in _send_all(missing, send, data, workers):
            file.write(_line(name))
            file.flush()
            sent.update([name])
    remove(scratch)
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
    table, settings = find_stored(place / "images.parquet"), find_stored(place / "settings.json")
    names = {file.path.stem: file.key for file in stored_files(place / "images")}
    if not (table and settings and names):
        return
    try:
        recipe = json.loads(copied(settings).read_text(encoding="utf-8"))["decoding"]
        images = pd.read_parquet(copied(table), columns=["shard", "sha256"])
    except (OSError, ValueError, LookupError, TypeError):  # damaged, or of another version of the project
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
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for batch in batches_of(shard):
            prepare_batch(data, settings, max_pixels, batch)
        return _store_of(data).send(shard.temporary)
    finally:
        shard.temporary.unlink(missing_ok=True)
