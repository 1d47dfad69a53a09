"""Statistics and embeddings of pairs, in the order of the manifest's rows."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_model import write_tiny_model

from diptych.data.shards import list_members
from diptych.drift import pairs
from diptych.drift.pairs import embed_pairs, picture_statistics
from diptych.errors import DiptychError

COLOURS: dict[str | tuple[int, int, int], tuple[float, float, float]] = {
    "black": (0, 0, 0),
    "white": (255, 0, 0),
    (255, 0, 0): (76, 0, 255),
}
"""Colours with their luma, its standard deviation, and their saturation."""


def plain(colour: str | tuple[int, int, int]) -> bytes:
    file = BytesIO()
    Image.new("RGB", (40, 40), colour).save(file, "PNG")
    return file.getvalue()


def rows_of(data: Path) -> pd.DataFrame:
    """What the manifest has of the images' positions."""
    rows = [(member.shard, member.name, member.offset, member.size) for member in list_members(data)]
    return pd.DataFrame(rows, columns=["shard", "file_name", "offset", "bytes"])


@pytest.fixture
def coloured(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset([("train", plain(colour)) for colour in COLOURS])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def test_brightness_contrast_and_saturation_are_from_0_to_255(coloured: Path) -> None:
    assert picture_statistics(coloured, rows_of(coloured), 1) == pytest.approx(np.array(list(COLOURS.values())))


def test_contrast_is_the_standard_deviation_of_the_luma(make_dataset: Callable[..., Path]) -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, 16:] = 255
    file = BytesIO()
    Image.fromarray(half).save(file, "PNG")
    data = make_dataset([("train", file.getvalue())])
    assert picture_statistics(data, rows_of(data), 1).tolist() == [[127.5, 127.5, 0]]


def test_statistics_are_in_the_order_of_the_rows(coloured: Path) -> None:
    order = [2, 0]
    expected = np.array(list(COLOURS.values()))[order]
    assert picture_statistics(coloured, rows_of(coloured).iloc[order], 1) == pytest.approx(expected)


def test_several_processes_give_the_same_statistics(
    make_dataset: Callable[..., Path], photo: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset([("train", photo(seed)) for seed in range(6)])
    alone = picture_statistics(data, rows_of(data), 1)
    monkeypatch.setattr(pairs, "_BATCH", 1)
    assert np.array_equal(picture_statistics(data, rows_of(data), 2), alone)


def test_no_images_have_no_statistics(coloured: Path) -> None:
    assert picture_statistics(coloured, rows_of(coloured).iloc[:0], 1).shape == (0, 3)


def test_a_missing_shard_is_named_with_its_repair(coloured: Path) -> None:
    rows = rows_of(coloured)
    (coloured / "images-00000.tar").unlink()
    with pytest.raises(DiptychError, match=r"images-00000\.tar is missing; `dvc checkout` restores it"):
        picture_statistics(coloured, rows, 1)


def test_a_pair_is_its_image_beside_its_caption(coloured: Path, model: Path) -> None:
    rows, captions = rows_of(coloured), ["a picture", "of thing", "a picture of thing"]
    embedded = embed_pairs(coloured, rows, captions, model, "cpu")
    assert embedded.dtype == np.float16
    image, text = np.split(embedded.astype(float), 2, axis=1)
    assert np.linalg.norm(image, axis=1) == pytest.approx(np.ones(3), abs=0.01)
    assert np.linalg.norm(text, axis=1) == pytest.approx(np.ones(3), abs=0.01)
    swapped = embed_pairs(coloured, rows.iloc[[1, 0, 2]], captions, model, "cpu").astype(float)
    assert swapped == pytest.approx(np.hstack([image[[1, 0, 2]], text]), abs=0.01)


def test_a_folder_without_a_model_is_an_error(coloured: Path, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="nothing-here"):
        embed_pairs(coloured, rows_of(coloured), ["a", "b", "c"], tmp_path / "nothing-here", "cpu")
