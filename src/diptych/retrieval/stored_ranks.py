"""Ranks of a split on disk: artifacts/baselines.npz and artifacts/controls.npz."""

from __future__ import annotations

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.retrieval.ranking import Outcomes, Ranks


def save_ranks(path: Path, ranks: dict[str, Ranks]) -> None:
    """Write the ranks of a split by each of several methods, by name."""
    arrays = {
        f"{name}.{direction}.{field}": values
        for name, both in ranks.items()
        for direction, outcomes in both._asdict().items()
        for field, values in outcomes._asdict().items()
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_ranks(path: Path, images: int, captions: int) -> dict[str, Ranks]:
    """Read the ranks that `save_ranks` wrote, by name, of a split of `images` and `captions`.

    Raises:
        DiptychError: the file is missing or damaged, or of another split.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = dict.fromkeys(key.partition(".")[0] for key in arrays)
            ranks = {
                name: Ranks(
                    *(
                        Outcomes(*(arrays[f"{name}.{direction}.{field}"] for field in Outcomes._fields))
                        for direction in Ranks._fields
                    )
                )
                for name in names
            }
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise DiptychError(f"{path} is missing or damaged ({error}). Run `dvc repro {path.stem}`.") from None
    for name, both in ranks.items():
        if (len(both.i2t.rank), len(both.t2i.rank)) != (images, captions):
            raise DiptychError(f"{path} holds {name} of another test split. Run `dvc repro {path.stem}`.")
    return ranks
