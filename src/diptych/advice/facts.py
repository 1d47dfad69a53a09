"""Facts about a dataset and the project's pretrained towers; no image is decoded and no model is built for them."""

from __future__ import annotations

import re
import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.config import Params
from diptych.data.captions import MISSING_WORDS, read_dataset
from diptych.data.offline_weights import IMAGE_TOWERS
from diptych.data.text_files import read_json
from diptych.data.tokenization import copy_tokenizer
from diptych.errors import DiptychError

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_PIECES = re.compile(r"\w+|[^\w\s]")
_USUAL_SIZE = 224
"""Width and height in pixels that most image towers were made for."""
_POSITIONS = 512
"""Largest number of tokens of a caption that params.yaml allows."""


@dataclass(frozen=True)
class Facts:
    """Facts of a captions file.

    Attributes:
        images: number of captioned images by split; images without a split do not count.
        captions: texts of all captions but the blank ones and those that stand for a missing value.
        captions_per_image: the most frequent number of captions of an image.
        side_share: share of captions that say left or right.
    """

    images: dict[str, int]
    captions: list[str]
    captions_per_image: int
    side_share: float


@dataclass(frozen=True)
class TowerFolder:
    """A pretrained tower in a folder of the project.

    Attributes:
        path: the folder as params.yaml names it.
        image_size: width and height of the images that it was made for; None: it is a text tower.
        positions: largest number of tokens that a text tower reads.
    """

    path: str
    image_size: int | None = None
    positions: int = _POSITIONS


def read_facts(folder: Path) -> Facts:
    """Return the facts of the dataset in `folder`.

    Raises:
        DiptychError: there is no dataset, it is damaged, or no image of a split has a caption.
    """
    dataset = read_dataset(folder)
    texts = [note for note in dataset.annotations if _is_usable(note.get("caption"))]
    per_image = Counter(note.get("image_id") for note in texts)
    captioned = [
        record for record in dataset.images if per_image[record["id"]] and isinstance(record.get("split"), str)
    ]
    if not captioned:
        raise DiptychError(f"{folder}: no image of a split has a caption. Import some with `diptych data import`.")
    captions = [note["caption"] for note in texts]
    return Facts(
        images=dict(Counter(record["split"] for record in captioned)),
        captions=captions,
        captions_per_image=statistics.mode(per_image[record["id"]] for record in captioned),
        side_share=sum(map(bool, map(_SIDES.search, captions))) / len(captions),
    )


def find_towers(weights: Path) -> list[TowerFolder]:
    """Return the towers in the folders within `weights`: image towers by the size of their images, then text towers.

    Towers that this leaves equal are ordered by name.
    Folders without safetensors are left out, and models that are neither a vision backbone nor a text encoder.

    Raises:
        DiptychError: a configuration is damaged.
    """
    folders = (folder for folder in sorted(weights.glob("*")) if (folder / "config.json").is_file())
    towers = (_tower(folder, f"./{weights.name}/{folder.name}") for folder in folders if _has_weights(folder))
    return sorted(filter(None, towers), key=lambda tower: (tower.image_size is None, tower.image_size or 0))


def caption_lengths(facts: Facts, params: Params) -> NDArray[np.int64]:
    """Return the number of tokens of each caption, its first and last included.

    A text tower from scratch learns its tokenizer later. For it words and marks are counted, and a quarter on top for
    words that will be cut.

    Raises:
        DiptychError: the tower's tokenizer is damaged.
    """
    tower = params.model.text_tower
    if tower.pretrained is None:
        return np.array([2 + round(1.25 * len(_PIECES.findall(caption))) for caption in facts.captions])
    from tokenizers import Tokenizer

    path = Path(tower.pretrained) / "tokenizer.json"
    with tempfile.TemporaryDirectory() as folder:
        if not path.is_file():
            copy_tokenizer(tower, Path(folder), max_tokens=4)
            path = Path(folder) / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise DiptychError(f"{path} holds no tokenizer: {error}. Fetch the tower again.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch_fast(facts.captions)])


def _is_usable(caption: object) -> bool:
    return isinstance(caption, str) and bool(caption.strip()) and caption.strip() not in MISSING_WORDS


def _has_weights(folder: Path) -> bool:
    return any(path.is_file() for path in folder.glob("*.safetensors"))


def _tower(folder: Path, path: str) -> TowerFolder | None:
    file = folder / "config.json"
    config: Any = read_json(file)
    if not isinstance(config, dict):
        raise DiptychError(f"{file} must hold keys and values, not {type(config).__name__}. Fetch the tower again.")
    # Models of both modalities keep the vocabulary in a section of its own.
    if "vocab_size" in config:
        positions = config.get("max_position_embeddings", _POSITIONS)
        if type(positions) is not int or positions < 4:
            raise DiptychError(f"{file}: max_position_embeddings is {positions!r}, and must be a number of tokens.")
        return TowerFolder(path, positions=min(positions, _POSITIONS))
    if (folder / "preprocessor_config.json").is_file() and "text_config" not in config:
        return TowerFolder(path, image_size=_image_size(folder))
    return None


def _image_size(folder: Path) -> int:
    """Return the size that the preprocessor of an image tower names; those of `weights offline` name none."""
    if folder.name in IMAGE_TOWERS:
        return IMAGE_TOWERS[folder.name].image_size
    content: Any = read_json(folder / "preprocessor_config.json")
    for key in ("crop_size", "size"):
        size = content.get(key) if isinstance(content, dict) else None
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
        if isinstance(size, int) and size >= 32:
            return size
    return _USUAL_SIZE
