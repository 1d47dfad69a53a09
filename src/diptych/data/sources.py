"""What an import reads: COCO captions, a Karpathy split, a table; each becomes images with their captions.

Everything that can be wrong with a source as a whole is found here, before an import writes anything. Whether a single
image can be decoded, or a caption makes sense, is for the validation to say.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.data.captions import MISSING_WORDS, Dataset, Record, indexed, read_coco, read_instances
from diptych.data.images_folder import ImagesFolder
from diptych.data.tables import read_table
from diptych.data.text_files import read_json
from diptych.errors import DiptychError, some

log = logging.getLogger(__name__)

_SPLIT_NAME = re.compile(r"[\w.-]+")
_COCO_FOLDER = re.compile(r"COCO_(\w+?)_\d")
_OWN_FIELDS = {"id", "file_name", "split", "source", "sha256", "objects"}


@dataclass(frozen=True)
class SourceCaption:
    """A caption; null where the source has it so. `id` is the source's, if it has ids."""

    text: str | None
    id: int | None = None


@dataclass(frozen=True)
class SourceImage:
    """An image file with its captions. `name` is how the source calls it, `fields` are kept in the image's record."""

    path: Path
    name: str
    split: str | None
    captions: tuple[SourceCaption, ...]
    id: int | None = None
    fields: Record = field(default_factory=dict)
    objects: list[str] | None = None
    """Categories of what is in it, once an object; None where nothing tells."""


@dataclass(frozen=True)
class Source:
    """All that one annotation file brings."""

    images: list[SourceImage]
    licenses: list[Any] = field(default_factory=list)


def coco_source(
    annotations: Path,
    images: Path,
    split: str | None = None,
    instances: Path | None = None,
    links_within: Path | None = None,
) -> Source:
    """A COCO captions file, 2014 or 2017 layout; `split`, if given, goes before the records' own.

    An `instances` file tells the objects of the images that it lists. Links may lead into `links_within`.

    Raises:
        DiptychError: a file is not what COCO has or contradicts itself, or image files are missing.
    """
    if split is not None:
        _check_split(split, "--split")
    objects = read_instances(instances) if instances else {}
    coco = read_coco(annotations)
    refuse_repeated(annotations, "image id", (record["id"] for record in coco.images))
    refuse_repeated(annotations, "annotation id", (record["id"] for record in coco.annotations))
    refuse_unlisted(annotations, coco)
    captions = indexed(coco).imgToAnns
    folder = ImagesFolder(images, links_within)
    found = [
        SourceImage(
            path=folder.find(coco_candidates(record), f"{annotations}: image {record['id']}"),
            name=folder.name_of(record["file_name"]),
            split=split or _split_of(record, f"{annotations}: image {record['id']}"),
            captions=tuple(SourceCaption(caption["caption"], caption["id"]) for caption in captions[record["id"]]),
            id=record["id"],
            fields=_kept_fields(record, f"{annotations}: image {record['id']}"),
            objects=objects.get(record["id"]),
        )
        for record in coco.images
    ]
    if instances and objects.keys().isdisjoint(record["id"] for record in coco.images):
        raise DiptychError(f"{instances} lists none of the images of {annotations}.")
    _check_storable(coco.licenses, f"{annotations}: licenses")
    return Source(_checked(annotations, found, folder), coco.licenses)


def karpathy_source(annotations: Path, images: Path, links_within: Path | None = None) -> Source:
    """A Karpathy split (`dataset_coco.json` and its kin); restval counts as train.

    Raises:
        DiptychError: the file is not of that form or contradicts itself, or image files are missing.
    """
    records = _read_karpathy(annotations)
    folder = ImagesFolder(images, links_within)
    found = [_karpathy_image(record, folder, f"{annotations}: images[{index}]") for index, record in enumerate(records)]
    refuse_repeated(annotations, "image id", (image.id for image in found))
    refuse_repeated(annotations, "sentid", (caption.id for image in found for caption in image.captions))
    return Source(_checked(annotations, found, folder))


def table_source(table: Path, images: Path, split: str | None = None, links_within: Path | None = None) -> Source:
    """Return the images of a CSV or TSV: columns `file`, `caption` (one or several), perhaps `split`; a row an image.

    An image may have several rows.

    Raises:
        DiptychError: as `read_table` and `ImagesFolder.find`, rows contradict each other, or image files are missing.
    """
    folder = ImagesFolder(images, links_within)
    paths: dict[str, Path] = {}
    found: dict[Path, SourceImage] = {}
    captions: dict[Path, list[SourceCaption]] = {}
    for row in read_table(table):
        where = f"{table}, line {row.line}"
        row_split = split or row.split
        if row_split is not None:
            _check_split(row_split, where)
        if row.file not in paths:
            paths[row.file] = folder.find([row.file], where)
        path = paths[row.file]
        known = found.setdefault(path, SourceImage(path, folder.name_of(row.file), row_split, ()))
        if known.split != row_split:
            raise DiptychError(f"{where}: {known.name} is in split {row_split}, but in {known.split} in a line before.")
        captions.setdefault(path, []).extend(map(SourceCaption, row.captions))
    complete = [replace(image, captions=tuple(captions[path])) for path, image in found.items()]
    return Source(_checked(table, complete, folder))


def coco_candidates(record: Record) -> list[str]:
    """Names to look for: as in the record, then below the folder that a 2014 name or the record's address tells."""
    name = record["file_name"]
    candidates = [name]
    if match := _COCO_FOLDER.match(name):
        candidates.append(f"{match[1]}/{name}")
    if isinstance(address := record.get("coco_url"), str):
        # The path alone matters, and urlsplit refuses some hosts.
        parts = PurePosixPath(address.partition("://")[2].partition("?")[0]).parts[-2:]
        candidates += ["/".join(parts), parts[-1]] if len(parts) == 2 else []
    return candidates


def _kept_fields(record: Record, where: str) -> Record:
    fields = {key: value for key, value in record.items() if key not in _OWN_FIELDS}
    _check_storable(fields, where)
    return fields


def _check_storable(value: Any, where: str) -> None:
    """Python reads more than JSON and UTF-8 can hold: NaN, and halves of characters."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise DiptychError(f"{where}: a field cannot be kept: {error}.") from None


def _karpathy_image(record: Any, folder: ImagesFolder, where: str) -> SourceImage:
    try:
        name = "/".join(part for part in (record.get("filepath", ""), record["filename"]) if part)
        captions = tuple(SourceCaption(item["raw"], item.get("sentid")) for item in record["sentences"])
        image_id = record.get("cocoid", record.get("imgid"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DiptychError(
            f"{where} is not a Karpathy record ({error!r}); a COCO captions file goes with --coco."
        ) from None
    if not all(isinstance(value, int | None) for value in (image_id, *(caption.id for caption in captions))):
        raise DiptychError(f"{where}: ids must be whole numbers.")
    if not all(isinstance(caption.text, str | None) for caption in captions):
        raise DiptychError(f"{where}: a sentence's raw is no text.")
    split = "train" if record.get("split") == "restval" else _split_of(record, where)
    path = folder.find([name, record["filename"]], where)
    return SourceImage(path, folder.name_of(name), split, captions, image_id)


def _split_of(record: Record, where: str) -> str | None:
    split = record.get("split")
    if split is not None:
        _check_split(split, where)
    return split


def _check_split(split: Any, where: str) -> None:
    if not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split):
        raise DiptychError(f"{where}: split {split!r} is not a name of letters, digits, dots and dashes.")
    if split in MISSING_WORDS:
        raise DiptychError(f"{where}: split {split!r} stands for a missing value; leave it empty to have splits dealt.")


def _read_karpathy(path: Path) -> list[Record]:
    content = read_json(path)
    records = content.get("images") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise DiptychError(f'{path} is not a Karpathy split: it has no list "images".')
    return records


def _checked(annotations: Path, images: list[SourceImage], folder: ImagesFolder) -> list[SourceImage]:
    if not images:
        raise DiptychError(f"{annotations} lists no images.")
    if folder.missing:
        missing = some([folder.describe(name) for name in folder.missing])
        raise DiptychError(
            f"{annotations}: {len(folder.missing)} of {len(images)} image files are not in {folder.path}: "
            f"{missing}. Check the images folder, or complete it."
        )
    if folder.respelled:
        name, path = next(iter(folder.respelled.items()))
        log.info(
            "%s: %d file names are spelled otherwise in %s (normalization, blanks, separators), such as %s for %s",
            annotations,
            len(folder.respelled),
            folder.path,
            ascii(name),
            ascii(path.relative_to(folder.path).as_posix()),
        )
    return images


def refuse_repeated(path: Path, what: str, values: Iterable[Hashable]) -> None:
    """Values that are there more than once, but for None.

    Raises:
        DiptychError: there are such; the message names them, and `what` they are.
    """
    repeated = [str(value) for value, count in Counter(values).items() if count > 1 and value is not None]
    if repeated:
        raise DiptychError(f"{path}: each {what} must be there once, but these are repeated: {some(repeated)}.")


def refuse_unlisted(path: Path, coco: Dataset) -> None:
    """Captions of images that the file does not list.

    Raises:
        DiptychError: there are such.
    """
    listed = {record["id"] for record in coco.images}
    unknown = [
        f"annotation {record['id']} (image {record['image_id']})"
        for record in coco.annotations
        if record["image_id"] not in listed
    ]
    if unknown:
        raise DiptychError(f"{path}: captions of images that it does not list: {some(unknown)}.")
