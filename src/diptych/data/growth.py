"""Dataset during an import: it adds new images and captions, and chooses their ids and splits."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from diptych.data.captions import Dataset, Record
from diptych.data.scenes.drawing import holds_scenes
from diptych.data.shards import ShardWriter
from diptych.data.sources import ImageFile, Source, SourceCaption, SourceImage
from diptych.errors import DiptychError, some

OntoScenes = Literal["refuse", "replace", "add"]
Shares = tuple[int, int, int]
"""Proportions of train, val and test when splits are dealt."""

DEFAULT_SHARES: Shares = (80, 10, 10)
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """Rules of an import for splits and generated scenes.

    Attributes:
        deal: proportions in which all images are dealt to train, val and test by their content, whatever their records
            say. Without it, only images without a split are dealt.
        keep_split: whether images that are already in another split stay there, instead of refusing the import.
        onto_scenes: treatment of a dataset of generated scenes.
    """

    deal: Shares | None = None
    keep_split: bool = False
    onto_scenes: OntoScenes = "refuse"


DEFAULT_RULES = Rules()


class Growth:
    """Dataset that an import extends; `offered` are all images of the sources, known or new."""

    def __init__(self, dataset: Dataset, sources: Sequence[Source], rules: Rules) -> None:
        self.images_added = 0
        self.captions_added = 0
        self.objects_changed = 0
        self._info = _info_after_import(dataset)
        self._images = list(dataset.images)
        self._annotations = list(dataset.annotations)
        self._licenses = list(dataset.licenses)
        self._rules = rules
        self.offered = [image for source in sources for image in _with_common_licenses(source, self._licenses)]
        self._by_content: dict[str, Record] = {}
        for record in self._images:
            self._by_content.setdefault(record.get("sha256", ""), record)
        self._texts: dict[int, set[str | None]] = {record["id"]: set() for record in self._images}
        for annotation in self._annotations:
            self._texts.setdefault(annotation["image_id"], set()).add(annotation["caption"])
        self._image_ids = _Ids(self._images, [image.id for image in self.offered])
        self._caption_ids = _Ids(self._annotations, [item.id for image in self.offered for item in image.captions])
        self._conflicts: list[str] = []
        self._with_objects: set[int] = set()
        self._dealt = 0

    def add(self, image: SourceImage, shards: ShardWriter) -> None:
        """Store the image and its captions, except those that the dataset has already."""
        content = _read_image(image.file)
        sha256 = hashlib.sha256(content).hexdigest()
        split = _deal(sha256, self._rules.deal) if self._rules.deal else image.split
        known = self._by_content.get(sha256)
        if known is None:
            record = self._new_record(image, sha256, split)
            shards.add(record["file_name"], content)
            self._set_objects(record, image)
            self._add_captions(record["id"], image.captions)
            return
        if split not in (None, known.get("split")):
            self._conflicts.append(
                f"{image.name} ({split}; known as {known.get('source', known['file_name'])} in {known.get('split')})"
            )
        self._set_objects(known, image)
        texts = self._texts[known["id"]]
        self._add_captions(known["id"], [caption for caption in image.captions if _clean(caption.text) not in texts])

    def refuse_conflicts(self) -> None:
        """Raise a DiptychError that names the images in two splits, if there are any and the rules do not allow it."""
        if self._conflicts and not self._rules.keep_split:
            raise DiptychError(
                f"Nothing was imported: {len(self._conflicts)} images are in the dataset in another split, and no "
                f"image may be in two splits: {some(self._conflicts)}. Import with --keep-split to leave them in their "
                "present split; to split all images again, remove data/ and import with --replace."
            )

    def report(self) -> None:
        """Log the number of dealt images, and the images that stay in another split."""
        if self._dealt:
            shares = self._rules.deal or DEFAULT_SHARES
            _log.info("%d images were dealt to train, val and test by their content, %d:%d:%d", self._dealt, *shares)
        if self._conflicts:
            _log.warning("%d images stay in their present split: %s", len(self._conflicts), some(self._conflicts))

    def result(self) -> Dataset:
        """Return the dataset with the added images and captions."""
        return Dataset(self._info, self._licenses, self._images, self._annotations)

    def _set_objects(self, record: Record, image: SourceImage) -> None:
        """Set the objects of the image; of equal images the first that has a list counts."""
        if image.objects is not None and record["id"] not in self._with_objects:
            self._with_objects.add(record["id"])
            self.objects_changed += record.get("objects") != image.objects
            record["objects"] = image.objects

    def _new_record(self, image: SourceImage, sha256: str, split: str | None) -> Record:
        image_id = self._image_ids.take(image.id)
        suffix = image.file.suffix.lower()
        self._dealt += split is None or self._rules.deal is not None
        split = split or _deal(sha256, DEFAULT_SHARES)
        record = {
            "id": image_id,
            "file_name": f"{image_id:012d}{suffix if _SUFFIX.fullmatch(suffix) else ''}",
            "split": split,
            **image.fields,
            "sha256": sha256,
            "source": image.name,
        }
        self._images.append(record)
        self._by_content[sha256] = record
        self._texts[image_id] = set()
        self.images_added += 1
        return record

    def _add_captions(self, image_id: int, captions: Iterable[SourceCaption]) -> None:
        for caption in captions:
            text = _clean(caption.text)
            self._texts[image_id].add(text)
            self._annotations.append({"id": self._caption_ids.take(caption.id), "image_id": image_id, "caption": text})
            self.captions_added += 1


class _Ids:
    """Supply of ids: that of the source if it is free, else one above all ids that are used or wanted."""

    def __init__(self, records: list[Record], wanted: list[Any]) -> None:
        self._used: set[int] = {record["id"] for record in records}
        self._next = 1 + max(self._used | {value for value in wanted if _usable(value)}, default=0)

    def take(self, wanted: Any) -> int:
        if not _usable(wanted) or wanted in self._used:
            wanted, self._next = self._next, self._next + 1
        self._used.add(wanted)
        return int(wanted)


def _usable(value: Any) -> bool:
    """Return whether `value` can be an id, which must fit into 64 bits and into a file name."""
    return isinstance(value, int) and 0 <= value < 2**62


def _deal(sha256: str, shares: Shares) -> str:
    """Return a split that depends on the content alone: it never changes, and equal images get the same split."""
    position = int(sha256[:12], 16) % sum(shares)
    return "train" if position < shares[0] else "val" if position < shares[0] + shares[1] else "test"


def _clean(text: str | None) -> str | None:
    """Join surrogate pairs and replace lone halves, which JSON can escape but UTF-8 cannot hold."""
    return None if text is None else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _info_after_import(dataset: Dataset) -> Record:
    if holds_scenes(dataset):
        return {"description": "diptych scenes and imported images", "version": "1"}
    return dataset.info or {"description": "images imported by diptych", "version": "1"}


def _with_common_licenses(source: Source, licenses: list[Any]) -> list[SourceImage]:
    """Return the images of `source` with licence ids of `licenses`, to which new licences are appended."""
    new_ids = {item["id"]: _common_id(item, licenses) for item in _numbered(source.licenses)}
    return [_relicensed(image, new_ids) for image in source.images]


def _common_id(licence: Record, licenses: list[Any]) -> int:
    known = _numbered(licenses)
    for item in known:
        if {**item, "id": 0} == {**licence, "id": 0}:
            return int(item["id"])
    used = {item["id"] for item in known}
    new_id: int = 1 + max(used) if licence["id"] in used else licence["id"]
    licenses.append({**licence, "id": new_id})
    return new_id


def _numbered(licenses: list[Any]) -> list[Record]:
    return [item for item in licenses if isinstance(item, dict) and isinstance(item.get("id"), int)]


def _relicensed(image: SourceImage, new_ids: dict[int, int]) -> SourceImage:
    licence = image.fields.get("license")
    if not isinstance(licence, int) or licence not in new_ids:
        return image
    return replace(image, fields={**image.fields, "license": new_ids[licence]})


def _read_image(file: ImageFile) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DiptychError(f"{file} cannot be read: {error.strerror}. Nothing was imported.") from None
