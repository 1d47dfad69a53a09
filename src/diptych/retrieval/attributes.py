"""What the images of a split are like, by which its queries are parted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError


class Attributes(NamedTuple):
    """Of the N images of a split, in its order."""

    of_images: dict[str, NDArray[np.float64]]
    """By name, (N,) each."""
    hashes: list[str]
    """Perceptual hashes (N), 16 hexadecimal digits each."""
    objects: list[list[str] | None]
    """The categories of what is in each image (N), once an object; None where that is not known."""


def attributes(manifest: Path, split: PreparedSplit) -> Attributes:
    """By the pixels of `split` and by what validation wrote down in `manifest`.

    Raises:
        DiptychError: the manifest is missing, damaged, or of other images.
    """
    rows = _rows_of(manifest, split)
    of_images = {
        "brightness in %": _brightness(split),
        "width / height": (rows["width"] / rows["height"]).to_numpy(),
    }
    objects = [json.loads(there) if isinstance(there, str) else None for there in rows["objects"]]
    return Attributes(of_images, rows["phash"].tolist(), objects)


def _rows_of(path: Path, split: PreparedSplit) -> pd.DataFrame:
    """What the manifest says of the images of `split`, in its order."""
    try:
        return pd.read_parquet(path).set_index("image_id").loc[split.image_ids]
    except (OSError, ValueError, KeyError) as error:
        raise DiptychError(f"{path} is missing, damaged or of other images ({error}). Run `dvc repro`.") from None


def _brightness(split: PreparedSplit) -> NDArray[np.float64]:
    """The mean of an image's values in percent of the largest (N,)."""
    return np.array([split.pixels(np.array([image])).mean() / 2.55 for image in range(len(split))])
