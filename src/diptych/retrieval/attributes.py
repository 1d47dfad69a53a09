"""Attributes of the images of a split, by which its queries are divided into slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.data.accepted import read_columns
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError

_BATCH = 256
"""Number of images that are read at once."""


class Attributes(NamedTuple):
    """Attributes of the N images of a split, in its order."""

    of_images: dict[str, NDArray[np.float64]]
    """Numbers by attribute, (N,) each."""
    hashes: list[str]
    """Perceptual hashes (N), 16 hexadecimal digits each."""
    objects: list[list[str] | None]
    """The categories of the objects in each image (N), once an object; None where they are not known."""


def attributes(manifest: Path, split: PreparedSplit) -> Attributes:
    """Return the attributes by the pixels of `split`, and by the rows that validation wrote to `manifest`.

    Raises:
        DiptychError: the manifest is missing, damaged, or of other images.
    """
    rows = _read_rows(manifest, split)
    of_images = {
        "brightness in %": _brightness(split),
        "width / height": rows["width"] / rows["height"],
    }
    objects = [json.loads(names) if isinstance(names, str) else None for names in rows["objects"]]
    return Attributes(of_images, rows["phash"].tolist(), objects)


def _read_rows(path: Path, split: PreparedSplit) -> dict[str, NDArray[Any]]:
    """Return columns of the manifest for the images of `split`, in its order."""
    columns = read_columns(path, "image_id", "width", "height", "phash", "objects", repair="Run `dvc repro`.")
    row_of = {image: row for row, image in enumerate(columns["image_id"].tolist())}
    try:
        rows = [row_of[image] for image in split.image_ids.tolist()]
    except KeyError as error:
        raise DiptychError(f"{path} lacks image {error}: it is of other images. Run `dvc repro`.") from None
    return {name: values[rows] for name, values in columns.items()}


def _brightness(split: PreparedSplit) -> NDArray[np.float64]:
    """Return the mean pixel value of each image (N,), in percent of the largest value."""
    # Pixels that are not on this disk are requested many at once.
    batches = np.array_split(np.arange(len(split)), -(-len(split) // _BATCH))
    return np.concatenate([split.pixels(batch).mean(axis=(1, 2, 3)) for batch in batches]) / 2.55
