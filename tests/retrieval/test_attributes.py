"""Attributes of images: those of the manifest, in the order of the split, and the brightness of the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import open_prepared, write_prepared

from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.retrieval import attributes as module
from diptych.retrieval.attributes import attributes


@pytest.fixture
def split(tmp_path: Path) -> PreparedSplit:
    return open_prepared(write_prepared(tmp_path / "prepared", train=12)).split("train")


def write_manifest(path: Path, image_ids: list[int]) -> Path:
    """With the id of an image as its perceptual hash."""
    table = pd.DataFrame({"image_id": image_ids, "width": 64, "height": 48, "objects": None})
    table.assign(phash=[f"{image_id:016x}" for image_id in image_ids]).to_parquet(path)
    return path


def test_brightness_is_the_mean_of_each_image_however_many_are_read_at_once(
    split: PreparedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(tmp_path / "manifest.parquet", split.image_ids[::-1].tolist())
    expected = [split.pixels(np.array([image])).mean() / 255 * 100 for image in range(len(split))]
    for at_once in (1, 5, 256):
        monkeypatch.setattr(module, "_BATCH", at_once)
        found = attributes(manifest, split)
        assert found.of_images["brightness in %"] == pytest.approx(expected, abs=1e-9)
    assert found.hashes == [f"{image_id:016x}" for image_id in split.image_ids]


def test_an_image_that_the_manifest_lacks_is_named(split: PreparedSplit, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "manifest.parquet", split.image_ids[1:].tolist())
    with pytest.raises(DiptychError, match=rf"lacks image {split.image_ids[0]}: it is of other images"):
        attributes(manifest, split)
