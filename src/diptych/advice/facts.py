"""Facts about a dataset and a machine that a recipe depends on; no image is decoded for them."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.config import Params
from diptych.data.captions import read_dataset
from diptych.data.offline_weights import IMAGE_TOWERS
from diptych.data.text_files import read_json
from diptych.errors import DiptychError

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_PIECES = re.compile(r"\w+|[^\w\s]")
_USUAL_SIZE = 224
"""Width and height in pixels that most image towers were made for."""


@dataclass(frozen=True)
class Facts:
    """What the captions file says.

    Attributes:
        images: number of captioned images by split.
        captions: texts of all captions.
        captions_per_image: captions of most images.
        names_sides: share of captions that say left or right.
    """

    images: dict[str, int]
    captions: list[str]
    captions_per_image: int
    names_sides: float


@dataclass(frozen=True)
class FoundTower:
    """A pretrained tower in a folder of the project.

    Attributes:
        path: the folder as params.yaml names it.
        image_size: width and height of the images that it was made for; None: it is a text tower.
        bytes: size of its weights.
    """

    path: str
    image_size: int | None
    bytes: int


def read_facts(folder: Path) -> Facts:
    """Return the facts of the dataset in `folder`.

    Raises:
        DiptychError: there is no dataset, it is damaged, or no image has a caption.
    """
    dataset = read_dataset(folder)
    captions = [note["caption"] for note in dataset.annotations if isinstance(note.get("caption"), str)]
    per_image = Counter(note.get("image_id") for note in dataset.annotations if isinstance(note.get("caption"), str))
    captioned = [record for record in dataset.images if per_image[record["id"]]]
    if not captioned:
        raise DiptychError(f"{folder}: no image has a caption. Import some with `diptych data import`.")
    return Facts(
        images=dict(Counter(str(record.get("split", "(none)")) for record in captioned)),
        captions=captions,
        captions_per_image=statistics.mode(per_image[record["id"]] for record in captioned),
        names_sides=sum(map(bool, map(_SIDES.search, captions))) / len(captions),
    )


def find_towers(weights: Path) -> list[FoundTower]:
    """Return the towers in the folders within `weights`, image towers by the size of their images, then text towers.

    Raises:
        DiptychError: a tower's preprocessor_config.json is damaged.
    """
    towers = [
        FoundTower(f"./{weights.name}/{folder.name}", _image_size(folder), file.stat().st_size)
        for folder in sorted(weights.glob("*"))
        if (folder / "config.json").is_file() and (file := next(folder.glob("*.safetensors"), None))
    ]
    return sorted(towers, key=lambda tower: (tower.image_size is None, tower.image_size or 0, tower.bytes))


def caption_lengths(facts: Facts, params: Params) -> NDArray[np.int64]:
    """Return the number of tokens of each caption, its first and last included.

    A text tower from scratch learns its tokenizer later. For it words and marks are counted, and a quarter on top for
    words that will be cut.
    """
    tower = params.model.text_tower
    if tower.pretrained and (file := Path(tower.pretrained) / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch_fast(facts.captions)])
    return np.array([2 + round(1.25 * len(_PIECES.findall(caption))) for caption in facts.captions])


def _image_size(folder: Path) -> int | None:
    """Return the size of an image tower's images, as preprocessor_config.json has it; None: it is a text tower."""
    if folder.name in IMAGE_TOWERS:
        return IMAGE_TOWERS[folder.name].image_size
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    content: Any = read_json(path)
    for key in ("crop_size", "size"):
        size = content.get(key) if isinstance(content, dict) else None
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
        if isinstance(size, int) and size >= 32:
            return size
    return _USUAL_SIZE
