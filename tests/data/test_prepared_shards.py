"""Shards of prepared images: their keys, and the files that NumPy reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from preparation import SETTINGS, Project

from diptych.config import Preprocess
from diptych.data import prepared_shards, shards
from diptych.data.prepared_shards import batches_of, decoding, most_pixels, plan, prepare_batch, recipe_of


@pytest.fixture
def project(tmp_path: Path, photo: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(shards, "MAX_MEMBERS", 3)
    project = Project(tmp_path, photo)
    project.add(*range(4))
    return project


def test_a_key_stands_for_the_images_in_their_order_and_the_recipe(project: Project, tmp_path: Path) -> None:
    manifest = project.manifest
    first, second = plan(manifest, SETTINGS, tmp_path)
    assert first.path.stem == recipe_of(decoding(SETTINGS), manifest["sha256"].tolist()[:3])
    keys = {first.path.stem, second.path.stem}
    keys |= {shard.path.stem for shard in plan(manifest, Preprocess(image_size=48), tmp_path)}
    keys |= {shard.path.stem for shard in plan(manifest.iloc[[1, 0, 2, 3]], SETTINGS, tmp_path)}
    assert len(keys) == 5  # the last shard is the same in any order of the first one
    assert (first.stem, first.shape, second.shape) == ("images-00000", (3, 32, 32, 3), (1, 32, 32, 3))


def test_batches_fill_a_file_that_numpy_reads(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared_shards, "batch_size", lambda: 2)
    manifest = project.manifest
    shard = plan(manifest, SETTINGS, tmp_path)[0]

    counts = [prepare_batch(tmp_path / "data", SETTINGS, most_pixels(manifest), batch) for batch in batches_of(shard)]

    assert counts == [2, 1]
    assert shard.temporary.stat().st_size == shard.file_size
    pixels = np.load(shard.temporary)
    assert np.array_equal(pixels, np.stack([project.expected(f"00{index}.png") for index in range(3)]))


def test_the_largest_image_is_found_beyond_32_bits(project: Project) -> None:
    manifest = project.manifest.assign(width=np.int32(2**17), height=np.int32(2**16))
    assert most_pixels(manifest) == 2**33
