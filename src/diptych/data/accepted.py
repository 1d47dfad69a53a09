"""Tables of the images and captions that the validate stage accepted, and the rows of a role in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from diptych.config import Role, Splits
from diptych.errors import DiptychError


@dataclass(frozen=True, eq=False)
class Accepted:
    """Accepted images and captions of a dataset.

    Attributes:
        data: folder of the dataset, which holds the shards.
        images: one row for each image, as in manifest.parquet.
        captions: one row for each caption, as in captions.parquet.
    """

    data: Path
    images: pd.DataFrame
    captions: pd.DataFrame


def read_accepted(data: Path, manifest: Path, captions: Path) -> Accepted:
    """Return the images and captions that the validate stage accepted of the dataset in `data`."""
    return Accepted(data, read_table(manifest), read_table(captions))


def read_table(path: Path, repair: str = "Run `dvc repro validate`.") -> pd.DataFrame:
    """Return the content of a Parquet file, by default one of the validate stage.

    Raises:
        DiptychError: the file is missing or damaged; the message ends with `repair`.
    """
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} is missing or damaged ({error}). {repair}") from None


def images_of_role(images: pd.DataFrame, splits: Splits, role: Role) -> pd.DataFrame:
    """Return the rows of the split that has `role`, by their columns split and sha256.

    Where no split is named for val, train and val share one split: val has the images that are held out of it.
    """
    chosen = images[images["split"] == (getattr(splits, role) or splits.train)]
    if splits.val is None and role in ("train", "val"):
        held_out = chosen["sha256"].map(splits.is_held_out).astype(bool)
        chosen = chosen[held_out == (role == "val")]
    return chosen
