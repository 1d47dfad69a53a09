"""Tables of the images and captions that the validate stage accepted, and the rows of a role in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych.config import Role, Splits
from diptych.errors import DiptychError

if TYPE_CHECKING:
    import pandas as pd

_VALIDATE = "Run `dvc repro validate`."
_ROWS = 10_000
"""Number of captions that are read at once."""


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


def read_table(path: Path, repair: str = _VALIDATE) -> pd.DataFrame:
    """Return the content of a Parquet file, by default one of the validate stage.

    Raises:
        DiptychError: the file is missing or damaged; the message ends with `repair`.
    """
    import pandas as pd

    with _damage_explained(path, repair):
        return pd.read_parquet(path)


def read_columns(path: Path, *names: str, repair: str) -> dict[str, NDArray[Any]]:
    """Return columns of a Parquet file, texts as arrays of objects; it spares the import of pandas.

    Raises:
        DiptychError: the file is missing, damaged, or without one of the columns; the message ends with `repair`.
    """
    from pyarrow import parquet

    with _damage_explained(path, repair):
        table = parquet.read_table(path, columns=list(names))
        return {name: table[name].to_numpy() for name in names}


@dataclass(frozen=True, eq=False)
class CaptionTexts:
    """Texts of the captions in a file like captions.parquet, read in parts each time that they are iterated.

    Attributes:
        path: the file.
        image_ids: ids of the images whose captions they are; None: of all.

    Raises:
        DiptychError: the file is missing or damaged.
    """

    path: Path
    image_ids: Collection[int] | NDArray[np.int64] | None = None

    def __iter__(self) -> Iterator[str]:
        import pyarrow as pa
        from pyarrow import compute, parquet

        with _damage_explained(self.path):
            of_images = None
            if self.image_ids is not None:
                # Once for all captions, since each call makes a hash table of the ids.
                ids = parquet.read_table(self.path, columns=["image_id"])["image_id"]
                of_images = compute.is_in(ids, pa.array(self.image_ids, pa.int64())).combine_chunks()
            start = 0
            for part in parquet.ParquetFile(self.path).iter_batches(_ROWS, columns=["caption"]):
                texts = part["caption"]
                wanted = texts if of_images is None else texts.filter(of_images.slice(start, len(texts)))
                start += len(texts)
                yield from wanted.to_pylist()


def copy_captions(source: Path, target: Path) -> None:
    """Write a copy of captions.parquet, read in parts.

    Raises:
        DiptychError: the file is missing or damaged.
    """
    from pyarrow import parquet

    with _damage_explained(source):
        captions = parquet.ParquetFile(source)
        missing = {"caption_id", "image_id", "caption"}.difference(captions.schema_arrow.names)
        if missing:
            raise ValueError(f"no column {' and '.join(sorted(missing))}")
        with parquet.ParquetWriter(target, captions.schema_arrow) as writer:
            for part in captions.iter_batches(_ROWS):
                writer.write_batch(part)


@contextmanager
def _damage_explained(path: Path, repair: str = _VALIDATE) -> Iterator[None]:
    """Raise a DiptychError that ends with `repair` for what pyarrow raises where a file is missing or damaged."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ValueError, KeyError, ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise DiptychError(f"{path} is missing or damaged ({reason}). {repair}") from None


def images_of_role(images: pd.DataFrame, splits: Splits, role: Role) -> pd.DataFrame:
    """Return the rows of the split that has `role`, by their columns split and sha256."""
    return images.iloc[rows_of_role(images["split"].to_numpy(), images["sha256"].to_numpy(), splits, role)]


def rows_of_role(split: NDArray[Any], sha256: NDArray[Any], splits: Splits, role: Role) -> NDArray[np.int64]:
    """Return the rows of the images of the split that has `role`, from the split and the hash of each image (N,).

    Where no split is named for val, train and val share one split: val has the images that are held out of it.
    """
    rows = np.flatnonzero(split == (getattr(splits, role) or splits.train))
    if splits.val is None and role in ("train", "val"):
        held_out = np.array([splits.is_held_out(sha256[row]) for row in rows], bool)
        rows = rows[held_out == (role == "val")]
    return rows
