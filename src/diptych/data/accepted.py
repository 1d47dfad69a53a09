"""The images and captions that validation accepted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from diptych.errors import DiptychError


@dataclass(frozen=True, eq=False)
class Accepted:
    """The accepted pairs of a dataset.

    Attributes:
        data: folder of the dataset, which holds the shards.
        images: a row an image, as in manifest.parquet.
        captions: a row a caption, as in captions.parquet.
    """

    data: Path
    images: pd.DataFrame
    captions: pd.DataFrame


def read_accepted(data: Path, manifest: Path, captions: Path) -> Accepted:
    """Return the pairs that the validate stage accepted of the dataset in `data`.

    Raises:
        DiptychError: one of both tables is missing or damaged.
    """
    return Accepted(data, read_table(manifest), read_table(captions))


def read_table(path: Path) -> pd.DataFrame:
    """Return a table that the validate stage has written.

    Raises:
        DiptychError: it is missing or damaged.
    """
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} is missing or damaged ({error}). Run `dvc repro validate`.") from None
