"""Folds of a prepared dataset for cross-validation: each image is in the test part of one fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.config import Role
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.errors import DiptychError


class Fold(NamedTuple):
    """Parts of a dataset that share no image."""

    train: PreparedSplit
    val: PreparedSplit
    """Choices are made on it."""
    test: PreparedSplit
    """Figures are reported on it."""


def folds(prepared: Prepared, count: int, *, roles: Sequence[Role], held_out: float, batch_size: int) -> Iterator[Fold]:
    """Yield the folds of all images of the splits with `roles`.

    The content of an image decides, so equal images are in the same part, and an order in the dataset has no effect.

    Args:
        prepared: the dataset.
        count: the number of folds.
        roles: which splits' images take part, whatever their roles are elsewhere.
        held_out: the share of val in what is not test.
        batch_size: the number of images of a batch, which each train part must have.

    Raises:
        DiptychError: there are fewer than two folds, or a part would have too few images.
    """
    rows = prepared.rows_of(roles)
    if count < 2:
        raise DiptychError(f"cross-validation needs at least two folds, not {count}.")
    fold_of = _order(prepared.image_hashes[rows], 0) * count // max(1, len(rows))
    for fold in range(count):
        test, rest = rows[fold_of == fold], rows[fold_of != fold]
        # Other digits than those of the folds: val must not be the images next to test.
        is_val = _order(prepared.image_hashes[rest], 8) < round(held_out * len(rest))
        parts = [rest[~is_val], rest[is_val], test]
        _check(parts, count, held_out, batch_size)
        yield Fold(*(prepared.part(part) for part in parts))


def _order(hashes: NDArray[np.object_], start: int) -> NDArray[np.int64]:
    """Return the position of each image in the order of its hash from digit `start` on; equal images have one."""
    keys = np.array([digest[start:] for digest in hashes], dtype=str)
    return np.searchsorted(np.sort(keys), keys)


def _check(parts: Sequence[NDArray[np.int64]], count: int, held_out: float, batch_size: int) -> None:
    train, val, test = (len(part) for part in parts)
    if train < batch_size:
        raise DiptychError(
            f"{count} folds leave {train} images to train on, fewer than a batch of {batch_size}: take more folds, or "
            "lower train.batch_size."
        )
    if test < 2:
        raise DiptychError(f"{count} folds have {test} image(s) each, which cannot be ranked: take fewer folds.")
    if val < 2:
        raise DiptychError(f"data.splits.held_out ({held_out}) leaves {val} image(s) of a fold to choose on: raise it.")
