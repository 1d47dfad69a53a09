"""A table lists the images of a collection, with captions and attributes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from searching import photo, write_photos

from diptych.errors import DiptychError
from diptych.serving.collections import open_source
from diptych.serving.table_source import TableSource

PHOTOS = ["a.png", "sub/b.JPG"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", PHOTOS)


def table(folder: Path, text: str) -> TableSource:
    (folder / "files.csv").write_text(text)
    return TableSource(folder / "files.csv")


def test_a_table_gives_captions_and_attributes(photos: Path) -> None:
    source = table(photos, "file,caption,caption 2,year,day\na.png,one,two,2020,2024-05-01\nsub/b.JPG,three,,,\n")

    assert [(item.path, item.captions, item.attributes) for item in source.items()] == [
        ("a.png", ("one", "two"), {"year": 2020, "day": "2024-05-01"}),
        ("sub/b.JPG", ("three",), {"year": None, "day": None}),
    ]
    assert source.read("a.png") == photo(0)
    assert open_source(source.description, Path("data")).items() == source.items()


def test_a_name_of_digits_stays_a_name(tmp_path: Path) -> None:
    write_photos(tmp_path, ["007", "008"])
    assert [item.path for item in table(tmp_path, "file,year\n007,1\n008,2\n").items()] == ["007", "008"]


def test_a_parquet_table_is_read_like_a_csv(photos: Path) -> None:
    text = "file,year\na.png,2020\nsub/b.JPG,2021\n"
    pd.DataFrame({"file": PHOTOS, "year": [2020, 2021]}).to_parquet(photos / "files.parquet", index=False)

    assert TableSource(photos / "files.parquet").items() == table(photos, text).items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,year\na.png,2020\n", "needs one column `file`: it has path, year"),
        ("file\na.png\n../a.png\n", r"row 2 has the file '\.\./a\.png', which is no path within"),
        ("file\n/etc/hostname\n", "row 1 has the file '/etc/hostname'"),
        ("file\na.png\na.png\n", "row 2 names a.png a second time"),
        ("file,my year\na.png,2020\n", "the column 'my year' cannot be an attribute"),
        ("file,year\na.png\n", "is not a CSV or Parquet table"),
        ("file,year,year\na.png,1,2\n", "more than one column year"),
        ("file,file\na.png,b.png\n", "needs one column `file`: it has file, file"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error_that_names_the_row(photos: Path, text: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        table(photos, text).items()
