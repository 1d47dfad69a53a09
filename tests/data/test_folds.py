"""Folds for cross-validation: every image is tested once, and no part knows an image of another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import open_prepared, write_prepared

from diptych.config import Role
from diptych.data.folds import Fold, folds
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.errors import DiptychError

ALL: tuple[Role, ...] = ("train", "val", "test")


def hashed(folder: Path, contents: Sequence[int], reverse: bool = False) -> Prepared:
    """Give the images of a prepared dataset these contents; `reverse` turns the order of the dataset round."""
    images = pd.read_parquet(folder / "images.parquet")
    images["sha256"] = [hashlib.sha256(str(content).encode()).hexdigest() for content in contents]
    (images[::-1] if reverse else images).to_parquet(folder / "images.parquet")
    return open_prepared(folder)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return hashed(write_prepared(tmp_path / "p", train=24, val=10, test=6), range(40))


def made(prepared: Prepared, count: int = 4, roles: Sequence[Role] = ALL, batch_size: int = 2) -> list[Fold]:
    return list(folds(prepared, count, roles=roles, held_out=0.1, batch_size=batch_size))


def ids(part: PreparedSplit) -> set[int]:
    return set(part.image_ids.tolist())


def test_every_image_is_tested_once_and_the_parts_of_a_fold_share_none(prepared: Prepared) -> None:
    every = made(prepared)
    assert sorted(np.concatenate([fold.test.image_ids for fold in every])) == list(range(100, 140))
    for train, val, test in every:
        assert (len(train), len(val), len(test)) == (27, 3, 10)
        assert len(ids(train) | ids(val) | ids(test)) == 40


def test_a_part_has_the_captions_of_its_images(prepared: Prepared) -> None:
    for part in made(prepared)[0]:
        of_image = part.image_ids[part.image_of_caption]
        assert np.bincount(of_image, minlength=140)[part.image_ids].tolist() == (1 + part.image_ids % 100 % 3).tolist()


def test_the_order_of_the_dataset_has_no_effect(prepared: Prepared, tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "q", train=24, val=10, test=6)
    turned = hashed(folder, range(39, -1, -1), reverse=True)
    again = hashed(folder, range(40))
    for other in (turned, again):
        for ours, theirs in zip(made(prepared), made(other), strict=True):
            assert [sorted(part.image_hashes) for part in ours] == [sorted(part.image_hashes) for part in theirs]


def test_images_of_equal_content_are_in_one_part(tmp_path: Path) -> None:
    pairs = [number // 2 for number in range(40)]
    prepared = hashed(write_prepared(tmp_path / "p", train=24, val=10, test=6), pairs)
    for fold in made(prepared, count=7):
        hashes = [set(part.image_hashes) for part in fold]
        assert sum(map(len, hashes)) == 20


def test_only_images_of_the_roles_take_part(prepared: Prepared) -> None:
    every = made(prepared, roles=("train", "val"))
    assert set.union(*(ids(fold.test) for fold in every)) == set(range(100, 134))


@pytest.mark.parametrize(
    ("count", "batch_size", "message"),
    [
        (1, 2, "at least two folds, not 1"),
        (2, 19, r"2 folds leave 18 images to train on, fewer than a batch of 19.*train.batch_size"),
        (30, 2, r"30 folds have 1 image\(s\) each.*fewer folds"),
    ],
)
def test_folds_that_cannot_be_used_are_an_error(prepared: Prepared, count: int, batch_size: int, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        made(prepared, count, batch_size=batch_size)


def test_a_share_that_holds_out_nothing_to_choose_on_is_an_error(prepared: Prepared) -> None:
    with pytest.raises(DiptychError, match=r"held_out \(0.001\) leaves 0 image\(s\) of a fold to choose on"):
        list(folds(prepared, 4, roles=ALL, held_out=0.001, batch_size=2))
