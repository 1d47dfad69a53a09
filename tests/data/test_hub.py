"""Import of what `datasets` reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diptych.data.captions import read_dataset
from diptych.data.hub import Columns, hub_source
from diptych.data.importing import import_source
from diptych.data.shards import list_members, read_member
from diptych.errors import DiptychError

Photo = Callable[..., bytes]


def bring(folder: Path, *columns: str, split: str | None = None) -> Path:
    """Import the folder; return the dataset."""
    data = folder.parent / "data"
    import_source(data, hub_source(str(folder), Columns(*columns), split, folder.parent / "cache"), split)
    return data


def contents(data: Path) -> list[bytes]:
    return [read_member(data, member) for member in list_members(data)]


@pytest.fixture
def photos(tmp_path: Path, photo: Photo) -> Path:
    """A folder of images for each of two splits, with metadata.jsonl."""
    for number, split in enumerate(("train", "validation")):
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        rows = [{"file_name": f"{row}.png", "text": f"{split} {row}", "kind": split[0]} for row in range(3)]
        for row, record in enumerate(rows):
            (folder / record["file_name"]).write_bytes(photo(10 * number + row))
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "photos"


@pytest.fixture
def parquet(tmp_path: Path, photo: Photo) -> Path:
    """A folder of Parquet with the bytes of images, and lists of captions."""
    folder = tmp_path / "tables"
    folder.mkdir()
    rows: dict[str, Any] = {
        "picture": [{"bytes": photo(row), "path": f"{row}.png" if row else None} for row in range(4)],
        "sentences": [[f"first {row}", f"second {row}"] for row in range(4)],
        "part": ["train", "train", "validation", "test"],
    }
    table = pa.table(rows)
    features = {
        "picture": {"_type": "Image"},
        "sentences": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        "part": {"dtype": "string", "_type": "Value"},
    }
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "a.parquet")
    return folder


def test_a_folder_of_images_comes_with_its_splits(photos: Path, photo: Photo) -> None:
    data = bring(photos)
    dataset = read_dataset(data)
    assert [(record["source"], record["split"]) for record in dataset.images] == [
        (f"{row}.png", split) for split in ("train", "val") for row in range(3)
    ]
    assert [annotation["caption"] for annotation in dataset.annotations] == [
        f"{split} {row}" for split in ("train", "validation") for row in range(3)
    ]
    assert contents(data) == [photo(10 * number + row) for number in range(2) for row in range(3)]


def test_images_in_tables_come_with_lists_of_captions(parquet: Path, photo: Photo) -> None:
    data = bring(parquet, split="test")
    dataset = read_dataset(data)
    assert contents(data) == [photo(row) for row in range(4)]
    assert [record["source"] for record in dataset.images] == ["train/0", "1.png", "2.png", "3.png"]
    assert {record["split"] for record in dataset.images} == {"test"}
    assert [annotation["caption"] for annotation in dataset.annotations[:2]] == ["first 0", "second 0"]


def test_rows_without_an_image_or_a_caption_are_left_out_and_counted(
    tmp_path: Path, photo: Photo, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gaps"
    folder.mkdir()
    image = {"bytes": photo(1), "path": "1.png"}
    rows = {
        "image": [image, None, {"bytes": None, "path": None}, image | {"bytes": photo(2)}, image],
        "caption": [["a", None, ""], ["b"], ["c"], None, []],
    }
    pq.write_table(pa.table(rows), folder / "a.parquet")
    with caplog.at_level(logging.WARNING):
        data = bring(folder, "image")
    assert contents(data) == [photo(1)]
    assert [annotation["caption"] for annotation in read_dataset(data).annotations] == ["a"]
    assert "gaps, split train: 4 rows without an image or a caption are left out" in caplog.text


def test_a_column_of_bytes_is_one_of_images(tmp_path: Path, photo: Photo) -> None:
    folder = tmp_path / "bytes"
    folder.mkdir()
    pq.write_table(pa.table({"data": [photo(1), photo(2)], "text": ["a", "b"]}), folder / "a.parquet")
    assert contents(bring(folder, "data")) == [photo(1), photo(2)]
    with pytest.raises(DiptychError, match="column text has no images"):
        bring(folder, "text")


def test_a_path_that_leads_out_of_the_dataset_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "paths"
    folder.mkdir()
    rows = {"image": [{"bytes": None, "path": "/etc/passwd"}], "caption": ["a"]}
    pq.write_table(pa.table(rows), folder / "a.parquet")
    message = r"passwd \(.*paths, split train, row 0\) cannot be read: the table has a path that leads out"
    with pytest.raises(DiptychError, match=message):
        bring(folder, "image")


def test_columns_are_chosen_by_name(parquet: Path) -> None:
    dataset = read_dataset(bring(parquet, "picture", "part", "part"))
    assert [record["split"] for record in dataset.images] == ["train", "train", "val", "test"]
    assert [annotation["caption"] for annotation in dataset.annotations] == ["train", "train", "validation", "test"]


def test_one_split_alone_is_dealt(parquet: Path) -> None:
    assert {image.split for image in hub_source(str(parquet), Columns(), None, parquet.parent / "c").images} == {None}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(caption="words"), r"tables, split train has no column words; it has picture, sentences, part\."),
        (Columns(caption="picture"), "row 0, picture is neither a text nor a list of texts"),
        (Columns(split="sentences"), r"row 0: split \[.*\] may have only letters"),
    ],
)
def test_columns_that_cannot_be_used_are_named(parquet: Path, columns: Columns, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        hub_source(str(parquet), columns, None, parquet.parent / "cache")


def test_a_dataset_without_images_or_captions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pd.DataFrame({"caption": ["x"]}).to_parquet(tmp_path / "a/a.parquet")
    with pytest.raises(
        DiptychError, match=r"no column of images that is known as one; it has caption\. Choose by --image"
    ):
        hub_source(str(tmp_path / "a"), Columns(), None, tmp_path / "cache")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiptychError, match="empty cannot be read by datasets"):
        hub_source(str(tmp_path / "empty"), Columns(), None, tmp_path / "cache")
    for name in (__file__, "./nope", "x" * 300 + "/a/b"):
        with pytest.raises(DiptychError, match="is no folder: --hf takes a folder"):
            hub_source(name, Columns(), None, tmp_path / "cache")


def test_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library reads the variable when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DiptychError, match=r"nobody/nothing cannot be read by datasets: .* unless HF_HUB_OFFLINE=0"):
        hub_source("nobody/nothing", Columns(), None, tmp_path)
