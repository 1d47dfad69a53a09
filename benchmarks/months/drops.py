"""Twelve months of drops: pictures and captions from a supplier, in good months and in bad ones."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, ImageOps

from diptych.data.scenes.drawing import write_scenes
from diptych.data.shards import list_members, read_member

Kind = Literal["normal", "corrupt", "damaged table", "identical", "drifted", "wrong captions"]
SIZE = 48
"""Pixels of a side of a picture, of the first scenes too."""
NORMAL = {"train": 40, "val": 5, "test": 5}
DRIFTED = {"train": 80, "val": 5, "test": 10}
WRONG = {"train": 450, "val": 1, "test": 1}
"""More pictures than the dataset has: a few wrong captions would do no harm that the gate must notice."""
_FOREIGN = {
    "red": "rot",
    "blue": "blau",
    "green": "grün",
    "yellow": "gelb",
    "white": "weiss",
    "black": "schwarz",
    "circle": "kreis",
    "square": "quadrat",
    "triangle": "dreieck",
    "star": "stern",
    "heart": "herz",
    "cross": "kreuz",
    "and": "und",
    "a": "ein",
    "on": "auf",
    "with": "mit",
    "in": "im",
    "the": "das",
    "background": "hintergrund",
}


@dataclass(frozen=True)
class Month:
    """The events of a month: a drop, and the action of a person after its run."""

    number: int
    kind: Kind
    afterwards: Literal["", "revert", "rollback"] = ""

    @property
    def name(self) -> str:
        """Name of the drop."""
        return f"{self.number:02}-{self.kind.replace(' ', '-')}"


YEAR = (
    Month(1, "normal"),
    Month(2, "normal"),
    Month(3, "corrupt"),
    Month(4, "identical"),
    Month(5, "drifted"),
    Month(6, "wrong captions", "revert"),
    Month(7, "normal"),
    Month(8, "normal", "rollback"),
    Month(9, "normal"),
    Month(10, "damaged table"),
    Month(11, "normal"),
    Month(12, "normal"),
)


class Picture(NamedTuple):
    """A file of a drop, with its captions."""

    name: str
    split: str
    content: bytes
    captions: list[str]


def drop(inbox: Path, month: Month) -> Path:
    """Write the month's drop into the inbox, its captions last."""
    folder = inbox / month.name
    folder.mkdir(parents=True)
    pictures = make_pictures(month)
    for picture in pictures:
        (folder / picture.name).write_bytes(picture.content)
    # The folder counts as a drop once it has this file, so the file appears complete.
    table = folder / "captions.csv.part"
    table.write_text(_table(pictures, cut=month.kind == "damaged table"), encoding="utf-8")
    return table.rename(folder / "captions.csv")


def make_pictures(month: Month, *, spoilt: bool = True) -> list[Picture]:
    """Return the pictures of a month, which depend on its number only; without `spoilt`, before their faults."""
    if month.kind == "identical":
        return make_pictures(YEAR[1])
    counts = {"drifted": DRIFTED, "wrong captions": WRONG}.get(month.kind, NORMAL)
    pictures = _scenes(1000 + month.number, counts)
    if month.kind == "corrupt" and spoilt:
        # A broken transfer spoils a share far above the limit of the quarantine.
        return [
            picture._replace(content=picture.content[:-200]) if index % 3 == 0 else picture
            for index, picture in enumerate(pictures)
        ]
    if month.kind == "drifted" and spoilt:
        return [
            picture._replace(content=_inverted(picture.content), captions=_foreign(picture.captions))
            for picture in pictures
        ]
    if month.kind == "wrong captions" and spoilt:
        return _shuffled(pictures)
    return pictures


def _scenes(seed: int, counts: Mapping[str, int]) -> list[Picture]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        dataset = write_scenes(
            folder, seed=seed, size=SIZE, train=counts["train"], val=counts["val"], test=counts["test"]
        )
        content = {member.name: read_member(folder, member) for member in list_members(folder)}
    captions: dict[int, list[str]] = {}
    for annotation in dataset.annotations:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return [
        Picture(f"{seed}-{image['file_name']}", image["split"], content[image["file_name"]], captions[image["id"]])
        for image in dataset.images
    ]


def _shuffled(pictures: Sequence[Picture]) -> list[Picture]:
    """Move the captions to other pictures, as in a table of which one column was sorted without the others."""
    captions = [picture.captions for picture in pictures]
    half = len(pictures) // 2
    return [picture._replace(captions=captions[index - half]) for index, picture in enumerate(pictures)]


def _inverted(content: bytes) -> bytes:
    """Return the negative of a picture."""
    buffer = BytesIO()
    ImageOps.invert(Image.open(BytesIO(content)).convert("RGB")).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _foreign(captions: Sequence[str]) -> list[str]:
    """Replace words by words that no caption had before."""
    return [" ".join(_FOREIGN.get(word.lower(), word) for word in caption.split()) for caption in captions]


def _table(pictures: Sequence[Picture], *, cut: bool) -> str:
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "caption", "split"))
        rows.writerows((item.name, caption, item.split) for item in pictures for caption in item.captions)
        file.seek(0)
        content = file.read()
    return content[: content.rindex(",")] if cut else content
