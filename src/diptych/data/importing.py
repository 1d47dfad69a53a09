"""Bringing captioned images into the dataset: only what is new, all of it or nothing.

An image is known by its content. New images go into new shards under temporary names; the shards get their names when
all is read, and the captions file, which makes them part of the dataset, comes last. A kill at any moment leaves the
dataset as it was.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from diptych.data.captions import CAPTIONS_FILE, Dataset, read_dataset, write_dataset
from diptych.data.growth import DEFAULT_RULES, Growth, Rules
from diptych.data.scenes.drawing import holds_scenes
from diptych.data.shards import ShardWriter, list_members
from diptych.data.sources import Source, coco_source, karpathy_source, table_source
from diptych.errors import DiptychError
from diptych.files import atomic_path, write_json
from diptych.progress import progress

log = logging.getLogger(__name__)

_JOURNAL = ".importing.json"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class CocoSource:
    """A COCO captions file, its images folder, the split if all of it goes into one, and its instances file, if any."""

    annotations: Path
    images: Path
    split: str | None = None
    instances: Path | None = None
    links_within: Path | None = None
    """A folder that links in the images folder may lead into."""


@dataclass(frozen=True)
class ImportSummary:
    """What an import did; `bytes` and `shards` count what was added."""

    images_added: int
    images_known: int
    captions_added: int
    captions_known: int
    objects_told: int
    """Images of which instances tell what is in them, and nothing did before."""
    bytes: int
    shards: int
    seconds: float


def import_coco(folder: Path, sources: Sequence[CocoSource], rules: Rules = DEFAULT_RULES) -> ImportSummary:
    """Imports COCO captions files into the dataset in `folder`. Raises as `add_sources` and `coco_source`."""
    if rules.deal and any(source.split for source in sources):
        raise DiptychError("Either give a file its split or have splits dealt, not both.")
    found = [
        coco_source(source.annotations, source.images, source.split, source.instances, source.links_within)
        for source in sources
    ]
    return add_sources(folder, found, rules)


def import_karpathy(
    folder: Path, annotations: Path, images: Path, rules: Rules = DEFAULT_RULES, links_within: Path | None = None
) -> ImportSummary:
    """Imports a Karpathy split into the dataset in `folder`. Raises as `add_sources` and `karpathy_source`."""
    return add_sources(folder, [karpathy_source(annotations, images, links_within)], rules)


def import_table(
    folder: Path,
    table: Path,
    images: Path,
    split: str | None = None,
    rules: Rules = DEFAULT_RULES,
    links_within: Path | None = None,
) -> ImportSummary:
    """Imports a CSV or TSV into the dataset in `folder`. Raises as `add_sources` and `table_source`."""
    if rules.deal and split:
        raise DiptychError("Either give a file its split or have splits dealt, not both.")
    return add_sources(folder, [table_source(table, images, split, links_within)], rules)


def add_sources(folder: Path, sources: Sequence[Source], rules: Rules) -> ImportSummary:
    """Adds what is new in `sources` to the dataset in `folder`.

    Raises:
        DiptychError: images are in the dataset in another split, the dataset is the generated scenes and nothing says
            what becomes of them, a file cannot be read, or the disk is full. The dataset is then as it was.
    """
    dataset = _read_or_empty(folder)
    if not holds_scenes(dataset):
        if dataset.images and rules.onto_scenes == "replace":
            log.warning(
                "%s holds a dataset of your own already, to which what is new is added: --replace is for the generated "
                "scenes. To begin anew, remove %s and import with --replace.",
                folder,
                folder,
            )
        return _add_in_place(folder, dataset, sources, rules)
    if rules.onto_scenes == "refuse":
        raise DiptychError(
            f"{folder} holds the generated scenes. Import with --replace to start a dataset of your own, "
            "or with --add to mix the two."
        )
    if rules.onto_scenes == "add":
        return _add_in_place(folder, dataset, sources, rules)
    with _disk_full_explained(folder), atomic_path(folder) as temporary:
        return _add_in_place(temporary, Dataset(), sources, rules)


def _add_in_place(folder: Path, dataset: Dataset, sources: Sequence[Source], rules: Rules) -> ImportSummary:
    started = time.monotonic()
    growth = Growth(dataset, sources, rules)
    with _disk_full_explained(folder):
        _remove_orphans(folder)
        try:
            shards = _store(folder, growth)
        except BaseException:
            _remove_orphans(folder)
            with suppress(OSError):
                folder.rmdir()  # Only if it is empty: there was no dataset before.
            raise
    growth.report()
    return ImportSummary(
        images_added=growth.images_added,
        images_known=len(growth.offered) - growth.images_added,
        captions_added=growth.captions_added,
        captions_known=sum(len(image.captions) for image in growth.offered) - growth.captions_added,
        objects_told=growth.objects_told,
        bytes=shards.bytes,
        shards=len(shards.shards),
        seconds=time.monotonic() - started,
    )


def _store(folder: Path, growth: Growth) -> ShardWriter:
    """Shards first, under names that the journal holds meanwhile; the captions file makes them count."""
    with ShardWriter(folder) as shards:
        for image in progress(growth.offered, "importing", unit="images"):
            growth.add(image, shards)
        growth.refuse_conflicts()
        if shards.shards:
            write_json(folder / _JOURNAL, {"shards": shards.shards})
    if growth.images_added or growth.captions_added or growth.objects_told:
        write_dataset(folder, growth.result())
    (folder / _JOURNAL).unlink(missing_ok=True)
    return shards


def _remove_orphans(folder: Path) -> None:
    """Removes shards that an import put in place before it failed, or was killed, short of the captions file."""
    try:
        shards = set(json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))["shards"])
    except FileNotFoundError:
        return
    used = {record["file_name"] for record in _read_or_empty(folder).images}
    in_use = {member.shard for member in list_members(folder) if member.name in used}
    for name in shards - in_use:
        (folder / name).unlink(missing_ok=True)
    (folder / _JOURNAL).unlink()


def _read_or_empty(folder: Path) -> Dataset:
    return read_dataset(folder) if (folder / CAPTIONS_FILE).exists() else Dataset()


@contextmanager
def _disk_full_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DiptychError(
            f"The disk is full ({error.strerror}) at {folder}. The dataset is as it was; make room and import again."
        ) from None
