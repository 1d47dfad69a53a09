"""Sources of an import: COCO captions, a Karpathy split or a table, each read as images with their captions.

Problems of a source as a whole are found here, before an import writes anything. The validation checks later whether an
image can be decoded and whether a caption makes sense.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from diptych.data.captions import MISSING_WORDS, Dataset, Record, indexed, read_coco, read_instances
from diptych.data.images_folder import ImagesFolder
from diptych.data.tables import read_caption_table
from diptych.data.text_files import read_json
from diptych.errors import DiptychError, some

log = logging.getLogger(__name__)

_SPLIT_NAME = re.compile(r"[\w.-]+")
_COCO_FOLDER = re.compile(r"COCO_(\w+?)_\d")
_DATASET_FIELDS = {"id", "file_name", "split", "source", "sha256", "objects"}


@dataclass(frozen=True)
class SourceCaption:
    """Caption of a source; `text` may be null there. `id` is its id in the source, if there are ids."""

    text: str | None
    id: int | None = None


class ImageFile(Protocol):
    """Image file of a source, such as a `Path`; as text it is named in messages."""

    @property
    def suffix(self) -> str:
        """Suffix of the file's name, with its dot."""

    def read_bytes(self) -> bytes:
        """Return the content of the file; raise an OSError if it cannot be read."""


@dataclass(frozen=True)
class SourceImage:
    """Image file with its captions. `name` is its name in the source; `fields` are stored in the image's record."""

    file: ImageFile
    name: str
    split: str | None
    captions: tuple[SourceCaption, ...]
    id: int | None = None
    fields: Record = field(default_factory=dict)
    objects: list[str] | None = None
    """Category of each object in the image; None if no instances file lists the image."""


@dataclass(frozen=True)
class Source:
    """Images and licences of one annotation file."""

    images: list[SourceImage]
    licenses: list[Any] = field(default_factory=list)


def coco_source(
    annotations: Path, images: ImagesFolder, split: str | None = None, instances: Path | None = None
) -> Source:
    """Read a COCO captions file of the 2014 or 2017 layout; `split`, if given, replaces the splits of its records.

    The `instances` file gives the objects of the images that it lists.

    Raises:
        DiptychError: a file is not a COCO file or contradicts itself, or image files are missing.
    """
    checked_split(split, "--split")
    objects = read_instances(instances) if instances else {}
    coco = read_coco(annotations)
    refuse_repeated(annotations, "image id", (record["id"] for record in coco.images))
    refuse_repeated(annotations, "annotation id", (record["id"] for record in coco.annotations))
    refuse_unlisted(annotations, coco)
    captions = indexed(coco).imgToAnns
    listed = []
    for record in coco.images:
        where = f"{annotations}: image {record['id']}"
        fields = {key: value for key, value in record.items() if key not in _DATASET_FIELDS}
        _check_storable(fields, where)
        image = SourceImage(
            file=images.find(coco_candidates(record), where),
            name=images.name_of(record["file_name"]),
            split=split or checked_split(record.get("split"), where),
            captions=tuple(SourceCaption(caption["caption"], caption["id"]) for caption in captions[record["id"]]),
            id=record["id"],
            fields=fields,
            objects=objects.get(record["id"]),
        )
        listed.append(image)
    if instances and objects.keys().isdisjoint(record["id"] for record in coco.images):
        raise DiptychError(f"{instances} lists none of the images of {annotations}.")
    _check_storable(coco.licenses, f"{annotations}: licenses")
    return Source(_checked(annotations, listed, images), coco.licenses)


def karpathy_source(annotations: Path, images: ImagesFolder) -> Source:
    """Read a Karpathy split (`dataset_coco.json` and similar files); its split restval becomes train.

    Raises:
        DiptychError: the file is not a Karpathy split or contradicts itself, or image files are missing.
    """
    content = read_json(annotations)
    records = content.get("images") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise DiptychError(f'{annotations} is not a Karpathy split: it has no list "images".')
    listed = [
        _karpathy_image(record, images, f"{annotations}: images[{index}]") for index, record in enumerate(records)
    ]
    refuse_repeated(annotations, "image id", (image.id for image in listed))
    refuse_repeated(annotations, "sentid", (caption.id for image in listed for caption in image.captions))
    return Source(_checked(annotations, listed, images))


def table_source(table: Path, images: ImagesFolder, split: str | None = None) -> Source:
    """Read a CSV or TSV with the columns `file`, `caption` (one or several) and optionally `split`.

    Each row names an image; several rows may name the same one.

    Raises:
        DiptychError: the file is not such a table, rows contradict each other, or image files are missing.
    """
    paths: dict[str, Path] = {}
    listed: dict[Path, SourceImage] = {}
    captions: dict[Path, list[SourceCaption]] = {}
    for row in read_caption_table(table):
        where = f"{table}, line {row.line}"
        row_split = checked_split(split or row.split, where)
        if row.file not in paths:
            paths[row.file] = images.find([row.file], where)
        path = paths[row.file]
        known = listed.setdefault(path, SourceImage(path, images.name_of(row.file), row_split, ()))
        if known.split != row_split:
            raise DiptychError(
                f"{where}: {known.name} is in split {row_split}, but an "
                f"earlier line has it in {known.split}. Give all its lines one split."
            )
        captions.setdefault(path, []).extend(map(SourceCaption, row.captions))
    complete = [replace(image, captions=tuple(captions[path])) for path, image in listed.items()]
    return Source(_checked(table, complete, images))


def coco_candidates(record: Record) -> list[str]:
    """Return candidate names: that of the record, then names in the folder that a 2014 name or `coco_url` implies."""
    name = record["file_name"]
    candidates = [name]
    if match := _COCO_FOLDER.match(name):
        candidates.append(f"{match[1]}/{name}")
    if isinstance(address := record.get("coco_url"), str):
        # Only the path is needed, and urlsplit refuses some hosts.
        parts = PurePosixPath(address.partition("://")[2].partition("?")[0]).parts[-2:]
        candidates += ["/".join(parts), parts[-1]] if len(parts) == 2 else []
    return candidates


def _check_storable(value: Any, where: str) -> None:
    """Refuse NaN and halves of surrogate pairs, which Python reads but JSON in UTF-8 cannot hold."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise DiptychError(f"{where}: a field cannot be stored: {error}. Correct it or leave it out.") from None


def _karpathy_image(record: Any, images: ImagesFolder, where: str) -> SourceImage:
    try:
        name = "/".join(part for part in (record.get("filepath", ""), record["filename"]) if part)
        captions = tuple(SourceCaption(item["raw"], item.get("sentid")) for item in record["sentences"])
        image_id = record.get("cocoid", record.get("imgid"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DiptychError(
            f"{where} is not a Karpathy record ({error!r}); import a COCO captions file with --coco."
        ) from None
    if not all(isinstance(value, int | None) for value in (image_id, *(caption.id for caption in captions))):
        raise DiptychError(f"{where}: ids must be whole numbers.")
    if not all(isinstance(caption.text, str | None) for caption in captions):
        raise DiptychError(f'{where}: the "raw" of a sentence is not a text.')
    split = "train" if record.get("split") == "restval" else checked_split(record.get("split"), where)
    path = images.find([name, record["filename"]], where)
    return SourceImage(path, images.name_of(name), split, captions, image_id)


def checked_split(split: Any, where: str) -> str | None:
    """Return the name of a split, or None; raise a DiptychError that begins with `where` if it cannot be one."""
    if split is None:
        return None
    if not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split):
        raise DiptychError(f"{where}: split {split!r} may have only letters, digits, dots, dashes and underscores.")
    if split in MISSING_WORDS:
        raise DiptychError(
            f"{where}: split {split!r} stands for a missing value; leave it empty to have the splits dealt."
        )
    return split


def _checked(annotations: Path, images: list[SourceImage], folder: ImagesFolder) -> list[SourceImage]:
    if not images:
        raise DiptychError(f"{annotations} lists no images.")
    folder.refuse_missing(annotations, len(images), "Check the images folder, or complete it.")
    if folder.respelled:
        name, path = next(iter(folder.respelled.items()))
        log.info(
            "%s: %d file names are spelled differently in %s (normalization, blanks, separators), such as %s for %s",
            annotations,
            len(folder.respelled),
            folder.path,
            ascii(name),
            ascii(path.relative_to(folder.path).as_posix()),
        )
    return images


def refuse_repeated(path: Path, what: str, values: Iterable[Hashable]) -> None:
    """Raise a DiptychError if a value other than None is repeated; the message names the values as `what`."""
    repeated = [str(value) for value, count in Counter(values).items() if count > 1 and value is not None]
    if repeated:
        raise DiptychError(f"{path}: each {what} must be unique, but these are repeated: {some(repeated)}.")


def refuse_unlisted(path: Path, coco: Dataset) -> None:
    """Raise a DiptychError if a caption belongs to an image that the file does not list; it names the captions."""
    listed = {record["id"] for record in coco.images}
    unknown = [
        f"annotation {record['id']} (image {record['image_id']})"
        for record in coco.annotations
        if record["image_id"] not in listed
    ]
    if unknown:
        raise DiptychError(f"{path}: captions of images that it does not list: {some(unknown)}.")
