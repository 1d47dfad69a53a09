"""Import of captioned images into the dataset: only new ones are stored, and an import is complete or has no effect.

An image is identified by its content. New images are written to new shards under temporary names, which are renamed
when all images have been read. The captions file, which makes them part of the dataset, is written last. A kill at any
moment leaves the dataset unchanged.
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
from diptych.data.images_folder import ImagesFolder
from diptych.data.scenes.drawing import holds_scenes
from diptych.data.shards import ShardWriter, list_members, shard_paths
from diptych.data.sources import Source, coco_source, karpathy_source, table_source
from diptych.data.stored import stored_files
from diptych.errors import DiptychError
from diptych.files import atomic_path, write_json
from diptych.progress import progress

log = logging.getLogger(__name__)

_JOURNAL = ".importing.json"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class CocoSource:
    """COCO captions file and its images folder; optionally one split for all images, and an instances file."""

    annotations: Path
    images: ImagesFolder
    split: str | None = None
    instances: Path | None = None


@dataclass(frozen=True)
class ImportSummary:
    """Summary of an import; `bytes` and `shards` are the numbers of those added."""

    images_added: int
    images_known: int
    captions_added: int
    captions_known: int
    objects_changed: int
    """Number of images whose lists of objects are new or changed."""
    bytes: int
    shards: int
    seconds: float


def import_coco(folder: Path, sources: Sequence[CocoSource], rules: Rules = DEFAULT_RULES) -> ImportSummary:
    """Import COCO captions files, each with an `ImagesFolder` of its own, into the dataset in `folder`."""
    _refuse_split_and_deal(rules, *(source.split for source in sources))
    read = [coco_source(source.annotations, source.images, source.split, source.instances) for source in sources]
    return add_sources(folder, read, rules)


def import_karpathy(
    folder: Path, annotations: Path, images: ImagesFolder, rules: Rules = DEFAULT_RULES
) -> ImportSummary:
    """Import a Karpathy split into the dataset in `folder`."""
    return add_sources(folder, [karpathy_source(annotations, images)], rules)


def import_table(
    folder: Path, table: Path, images: ImagesFolder, split: str | None = None, rules: Rules = DEFAULT_RULES
) -> ImportSummary:
    """Import a CSV or TSV into the dataset in `folder`."""
    _refuse_split_and_deal(rules, split)
    return add_sources(folder, [table_source(table, images, split)], rules)


def import_source(
    folder: Path, source: Source, split: str | None = None, rules: Rules = DEFAULT_RULES
) -> ImportSummary:
    """Import a source that was read; `split` is the one that it was read with."""
    _refuse_split_and_deal(rules, split)
    return add_sources(folder, [source], rules)


def add_sources(folder: Path, sources: Sequence[Source], rules: Rules) -> ImportSummary:
    """Add the new images and captions of `sources` to the dataset in `folder`.

    Raises:
        DiptychError: images are in the dataset in another split; the dataset is the generated scenes, and `rules`
            refuse an import onto them; a file cannot be read; or the disk is full. The dataset is then unchanged.
    """
    dataset = _read_or_empty(folder)
    if not holds_scenes(dataset):
        if dataset.images and rules.onto_scenes == "replace":
            log.warning(
                "%s holds imported images already, to which the new ones are added: --replace removes generated scenes "
                "only. To start again, remove %s and import with --replace.",
                folder,
                folder,
            )
        return _add_in_place(folder, dataset, sources, rules)
    if rules.onto_scenes == "refuse":
        raise DiptychError(
            f"{folder} holds the generated scenes. Import with --replace to start a new dataset, or with --add "
            "to mix both."
        )
    if rules.onto_scenes == "add":
        return _add_in_place(folder, dataset, sources, rules)
    with _disk_full_as_error(folder), atomic_path(folder) as temporary:
        return _add_in_place(temporary, Dataset(), sources, rules)


def _add_in_place(folder: Path, dataset: Dataset, sources: Sequence[Source], rules: Rules) -> ImportSummary:
    started = time.monotonic()
    growth = Growth(dataset, sources, rules)
    with _disk_full_as_error(folder):
        _remove_orphans(folder)
        try:
            shards = _store(folder, growth)
        except BaseException:
            _remove_orphans(folder)
            with suppress(OSError):
                folder.rmdir()  # Works only if it is empty: then there was no dataset before.
            raise
    growth.report()
    return ImportSummary(
        images_added=growth.images_added,
        images_known=len(growth.offered) - growth.images_added,
        captions_added=growth.captions_added,
        captions_known=sum(len(image.captions) for image in growth.offered) - growth.captions_added,
        objects_changed=growth.objects_changed,
        bytes=shards.bytes,
        shards=len(shards.shards),
        seconds=time.monotonic() - started,
    )


def _store(folder: Path, growth: Growth) -> ShardWriter:
    """Write the shards, with their names in the journal, then the captions file that makes them part of the dataset."""
    with ShardWriter(folder, _shards_elsewhere(folder)) as shards:
        for image in progress(growth.offered, "importing", unit="images"):
            growth.add(image, shards)
        growth.refuse_conflicts()
        if shards.shards:
            write_json(folder / _JOURNAL, {"shards": shards.shards})
    if growth.images_added or growth.captions_added or growth.objects_changed:
        write_dataset(folder, growth.result())
    (folder / _JOURNAL).unlink(missing_ok=True)
    return shards


def _shards_elsewhere(folder: Path) -> list[Path]:
    """Return where the shards of the dataset belong, if `folder` has only its captions."""
    if not (folder / CAPTIONS_FILE).exists() or shard_paths(folder):
        return []
    return [file.path for file in stored_files(folder)]


def _remove_orphans(folder: Path) -> None:
    """Remove shards of an import that failed, or was killed, before it wrote the captions file."""
    try:
        shards = set(json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))["shards"])
    except FileNotFoundError:
        return
    used = {record["file_name"] for record in _read_or_empty(folder).images}
    in_use = {member.shard for member in list_members(folder) if member.name in used}
    for name in shards - in_use:
        (folder / name).unlink(missing_ok=True)
    (folder / _JOURNAL).unlink()


def _refuse_split_and_deal(rules: Rules, *splits: str | None) -> None:
    if rules.deal and any(splits):
        raise DiptychError("Either give a file its split or have splits dealt, not both.")


def _read_or_empty(folder: Path) -> Dataset:
    return read_dataset(folder) if (folder / CAPTIONS_FILE).exists() else Dataset()


@contextmanager
def _disk_full_as_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DiptychError(
            f"The disk is full ({error.strerror}) at {folder}. The dataset is unchanged; free space and import again."
        ) from None
