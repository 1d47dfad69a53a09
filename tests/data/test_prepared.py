"""Reading prepared data back, split by split."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from memory_store import MemoryStore

from diptych.config import Role, Splits
from diptych.data.prepared import Prepared
from diptych.errors import DiptychError

SIZE = 4
# Image 30 lies in the second shard; image 40 has no caption; image 50 belongs to a split without a role.
IMAGES = [(10, "train", "images-00000", 0), (20, "val", "images-00000", 1), (30, "train", "images-00001", 0),
          (40, "train", "images-00001", 1), (50, "extra", "images-00001", 2)]  # fmt: skip
CAPTIONS = [(1, 10, [2, 7, 3]), (2, 10, [2, 8, 9, 3]), (3, 20, [2, 3]), (4, 30, [2, 9, 9, 9, 3]), (5, 50, [2, 5, 3])]


def colour(image_id: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), image_id, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = pd.DataFrame(IMAGES, columns=["image_id", "split", "shard", "row"])
    # By these, images 10 and 40 are held out where an eighth of train is.
    images["sha256"] = [f"{first:08x}{'0' * 56}" for first in (0x10000000, 0, 0x80000000, 0x1FFFFFFF, 0)]
    images["file_name"] = images["source"] = images["image_id"].astype(str) + ".jpg"
    images.to_parquet(tmp_path / "images.parquet")
    captions = pd.DataFrame([row[:2] for row in CAPTIONS], columns=["caption_id", "image_id"])
    captions.assign(caption=[f"caption {row[0]}" for row in CAPTIONS]).to_parquet(tmp_path / "captions.parquet")
    (tmp_path / "images").mkdir()
    for shard, rows in images.groupby("shard"):
        np.save(tmp_path / "images" / f"{shard}.npy", np.stack([colour(number) for number in rows["image_id"]]))
    np.save(tmp_path / "tokens.npy", np.array([token for row in CAPTIONS for token in row[2]], np.int32))
    np.save(tmp_path / "offsets.npy", np.cumsum([0, *(len(row[2]) for row in CAPTIONS)]))
    settings = {"format": 1, "image_size": SIZE, "resize": "stretch", "decoding": "d" * 64, "max_tokens": 8}
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "vocabulary_size": 10, "pad_token_id": 0}))
    return tmp_path


def test_a_split_holds_its_images_and_their_captions(folder: Path) -> None:
    train = Prepared(folder, Splits()).split("train")
    assert len(train) == 3
    assert train.image_ids.tolist() == [10, 30, 40]
    assert train.sources == ["10.jpg", "30.jpg", "40.jpg"]
    assert train.caption_ids.tolist() == [1, 2, 4]
    assert train.captions == ["caption 1", "caption 2", "caption 4"]


@pytest.mark.parametrize(("share", "role"), [(1e-9, "val"), (1 - 1e-9, "train")])
def test_a_share_that_holds_out_nothing_or_everything_is_an_error(folder: Path, share: float, role: Role) -> None:
    prepared = Prepared(folder, Splits(val=None, test="val", held_out=share))
    with pytest.raises(DiptychError, match=rf"held_out \(.*\) leaves no captioned images of split 'train' for {role}"):
        prepared.split(role)


def test_without_a_split_for_it_val_is_held_out_of_train(folder: Path) -> None:
    prepared = Prepared(folder, Splits(val=None, test="val", held_out=0.125))
    assert prepared.split("train").image_ids.tolist() == [30]
    assert prepared.split("val").image_ids.tolist() == [10, 40]
    assert prepared.split("test").image_ids.tolist() == [20]


def test_captions_and_images_find_each_other(folder: Path) -> None:
    train = Prepared(folder, Splits()).split("train")
    assert train.image_of_caption.tolist() == [0, 0, 1]
    assert train.caption_ranges.tolist() == [0, 2, 3, 3]


def test_pixels_are_gathered_across_shards_in_the_order_asked(folder: Path) -> None:
    pixels = Prepared(folder, Splits()).split("train").pixels(np.array([2, 0, 1, 0]))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.stack([colour(number) for number in (40, 10, 30, 10)]))


def test_tokens_are_padded_to_the_longest_asked_for(folder: Path) -> None:
    ids, mask = Prepared(folder, Splits()).split("train").tokens(np.array([1, 0]))
    assert ids.dtype == np.int64
    assert ids.tolist() == [[2, 8, 9, 3], [2, 7, 3, 0]]
    assert mask.tolist() == [[True] * 4, [True, True, True, False]]


def test_no_indices_give_empty_batches(folder: Path) -> None:
    train = Prepared(folder, Splits()).split("train")
    assert train.pixels(np.array([], np.int64)).shape == (0, SIZE, SIZE, 3)
    assert train.tokens(np.array([], np.int64))[0].shape == (0, 0)


def test_token_lengths_count_special_tokens(folder: Path) -> None:
    assert Prepared(folder, Splits()).split("train").token_lengths.tolist() == [3, 4, 5]


def test_one_split_can_play_two_roles(folder: Path) -> None:
    prepared = Prepared(folder, Splits(val="val", test="val"))
    assert prepared.split("test").image_ids.tolist() == prepared.split("val").image_ids.tolist() == [20]


def test_a_split_that_is_not_there_is_named_with_those_that_are(folder: Path) -> None:
    with pytest.raises(DiptychError, match=r"'test'.*data\.splits\.test.*extra, train, val"):
        Prepared(folder, Splits()).split("test")


def test_a_missing_folder_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="dvc repro preprocess"):
        Prepared(tmp_path / "nowhere", Splits())


@pytest.mark.parametrize("file", ["images.parquet", "captions.parquet", "tokens.npy", "offsets.npy", "settings.json"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_damaged_file_says_what_to_run(folder: Path, file: str, content: bytes | None) -> None:
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(DiptychError, match="dvc repro preprocess"):
        Prepared(folder, Splits())


def test_tokens_that_do_not_match_the_captions_are_refused(folder: Path) -> None:
    np.save(folder / "tokens.npy", np.zeros(3, np.int32))
    with pytest.raises(DiptychError, match="do not match"):
        Prepared(folder, Splits())


@pytest.mark.parametrize("settings", ['{"format": 999}', "[]", "3"])
def test_data_of_another_format_is_refused(folder: Path, settings: str) -> None:
    (folder / "settings.json").write_text(settings)
    with pytest.raises(DiptychError, match="another version"):
        Prepared(folder, Splits())


@pytest.mark.parametrize(
    "pixels", [None, np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros((0, SIZE, SIZE, 3), np.uint8)]
)
def test_damaged_pixels_are_named_when_they_are_needed(folder: Path, pixels: np.ndarray | None) -> None:
    path = folder / "images" / "images-00000.npy"
    path.write_bytes(b"cut off") if pixels is None else np.save(path, pixels)
    with pytest.raises(DiptychError, match=r"images-00000.*dvc repro preprocess"):
        Prepared(folder, Splits()).split("train").pixels(np.array([0]))


def test_pixels_that_are_partly_in_a_store_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, wanted = Prepared(folder, Splits()).split("train"), np.array([2, 0, 1, 0])
    expected = here.pixels(wanted)
    assert not here.is_stored_elsewhere
    store = MemoryStore(folder / "cache")
    store.use(monkeypatch)
    store.take(folder / "images" / "images-00001.npy")

    train = Prepared(folder, Splits()).split("train")

    assert train.is_stored_elsewhere
    assert np.array_equal(train.pixels(wanted), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(train)).pixels(wanted), expected)  # as another process gets it
