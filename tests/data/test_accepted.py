from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diptych.config import Splits
from diptych.data import accepted
from diptych.data.accepted import CaptionTexts, copy_captions, images_of_role, read_columns, read_table, rows_of_role
from diptych.errors import DiptychError

IMAGES = pd.DataFrame(
    {"image_id": [7, 8, 9], "split": ["train", "test", "train"], "sha256": ["0" * 64, "1" * 64, "f" * 64]}
)


def test_columns_are_those_that_pandas_reads(tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    IMAGES.assign(other=1).to_parquet(path)
    columns = read_columns(path, "split", "image_id", repair="Repair.")
    assert list(columns) == ["split", "image_id"]
    assert columns["image_id"].dtype == np.int64
    table = read_table(path)
    assert {name: values.tolist() for name, values in columns.items()} == table[list(columns)].to_dict("list")


@pytest.mark.parametrize("content", [None, b"", b"PAR1 nothing PAR1", "other"])
def test_a_file_without_the_columns_is_an_error(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "images.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        IMAGES[["split"]].to_parquet(path)
    with pytest.raises(DiptychError, match=r"images\.parquet is missing or damaged .* Repair\.$"):
        read_columns(path, "image_id", repair="Repair.")


def test_texts_of_captions_are_read_in_parts_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted, "_ROWS", 3)
    table = pd.DataFrame({"image_id": [7, 7, 2**62, 9, 7, 8, 9], "caption": list("abcdefg")})
    table.to_parquet(tmp_path / "captions.parquet", row_group_size=4)
    texts = CaptionTexts(tmp_path / "captions.parquet")
    assert list(texts) == list(texts) == list("abcdefg")
    assert list(CaptionTexts(texts.path, np.array([9, 2**62]))) == list("cdg")
    assert list(CaptionTexts(texts.path, [])) == []


def test_a_copy_of_captions_is_made_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted, "_ROWS", 3)
    table = pd.DataFrame({"caption_id": range(7), "image_id": [7, 7, 2**62, 9, 7, 8, 9], "caption": list("abcdefg")})
    table.to_parquet(tmp_path / "captions.parquet", index=False)
    copy_captions(tmp_path / "captions.parquet", tmp_path / "copy.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "copy.parquet"), table)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 nothing PAR1", ["caption"], ["image_id"], "cut", "changed"])
def test_captions_that_are_damaged_are_an_error(tmp_path: Path, content: bytes | list[str] | str | None) -> None:
    path = tmp_path / "captions.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        names = content if isinstance(content, list) else ["caption_id", "image_id", "caption"]
        pd.DataFrame({"caption_id": range(500), "image_id": range(500), "caption": "a b"})[names].to_parquet(path)
        whole = path.read_bytes()
        footer = 8 + int.from_bytes(whole[-8:-4], "little")
        changed = b"PAR1" + bytes(len(whole) - footer - 4) + whole[-footer:]
        path.write_bytes({"cut": whole[:-300], "changed": changed}.get(str(content), whole))
    with pytest.raises(DiptychError, match=r"captions\.parquet is missing or damaged .* Run `dvc repro validate`"):
        list(CaptionTexts(path, [1]))
    with pytest.raises(DiptychError, match=r"captions\.parquet is missing or damaged .* Run `dvc repro validate`"):
        copy_captions(path, tmp_path / "copy.parquet")


def test_rows_of_a_named_split() -> None:
    splits = Splits(train="train", val="val", test="test")
    split, sha256 = IMAGES["split"].to_numpy(), IMAGES["sha256"].to_numpy()
    assert rows_of_role(split, sha256, splits, "train").tolist() == [0, 2]
    assert rows_of_role(split, sha256, splits, "val").tolist() == []
    assert images_of_role(IMAGES, splits, "test")["image_id"].tolist() == [8]


def test_without_a_split_for_val_train_is_divided_by_content() -> None:
    splits = Splits(train="train", val=None, test="test", held_out=0.5)
    images = pd.DataFrame(
        {"split": ["train"] * 100, "sha256": [f"{number * 0x028F5C28:08x}".ljust(64, "0") for number in range(100)]}
    )
    parts = [images_of_role(images, splits, role) for role in ("train", "val")]
    assert [part["sha256"].map(splits.is_held_out).unique().tolist() for part in parts] == [[False], [True]]
    assert sum(map(len, parts)) == 100
