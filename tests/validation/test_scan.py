"""The scan of all images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diptych.data.captions import read_dataset
from diptych.errors import DiptychError
from diptych.validation.scan import scan_images

Make = Callable[..., Path]
Photo = Callable[..., bytes]
HEADER = b"IHDR" + (40_000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
BOMB = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + HEADER + crc32(HEADER).to_bytes(4) + (9).to_bytes(4) + b"IDAT\x00"
"""A header is enough: it is refused before anything else is read."""


def scan(data: Path, workers: int = 1) -> pd.DataFrame:
    return scan_images(data, read_dataset(data).images, max_pixels=100_000_000, workers=workers)


def save(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def rotated(photo: Photo) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return photo(0, file_format="JPEG", exif=exif)


@pytest.mark.parametrize("workers", [1, 2])
def test_sound_images_are_described(make_dataset: Make, photo: Photo, workers: int) -> None:
    contents = [photo(0), photo(1, size=(50, 70), file_format="JPEG")]
    table = scan(make_dataset([("train", content) for content in contents]), workers)
    assert table["image_id"].tolist() == [1, 2]
    assert table["width"].tolist() == [64, 50]
    assert table["height"].tolist() == [48, 70]
    assert table["mode"].tolist() == ["RGB", "RGB"]
    assert table["sha256"].tolist() == [hashlib.sha256(content).hexdigest() for content in contents]
    assert table["phash"].str.fullmatch("[0-9a-f]{16}").all()
    assert table["damage"].isna().all()


def test_members_are_where_the_table_says(make_dataset: Make, photo: Photo) -> None:
    data = make_dataset([("train", photo(0)), ("val", photo(1))])
    row = scan(data).iloc[1]
    content = (data / row["shard"]).read_bytes()[int(row["offset"]) :][: int(row["bytes"])]
    assert content == photo(1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated", "truncated"),
        ("empty", "empty file"),
        ("text", "not an image"),
        ("bomb", "40000×40000 pixels, more than 100000000"),
    ],
)
def test_what_cannot_be_used_has_its_reason(make_dataset: Make, photo: Photo, name: str, reason: str) -> None:
    jpeg = photo(0, file_format="JPEG")
    content = {
        "truncated": jpeg[: len(jpeg) // 2],
        "empty": b"",
        "text": b"Dear reader, this is a letter.",
        "bomb": BOMB,
    }
    table = scan(make_dataset([("train", content[name]), ("train", photo(1))]))
    assert reason in table["damage"][0]
    assert pd.isna(table["sha256"][0])
    assert pd.isna(table["damage"][1])


def test_a_missing_member_has_no_shard_and_shifts_no_other_row(make_dataset: Make, photo: Photo) -> None:
    table = scan(make_dataset([("train", None), ("train", photo(1, size=(50, 70)))]))
    assert pd.isna(table["shard"][0])
    assert pd.isna(table["damage"][0])
    assert table["width"][1] == 50


def test_only_the_given_records_are_scanned(make_dataset: Make, photo: Photo, caplog: Any) -> None:
    data = make_dataset([("train", photo(0)), ("val", photo(1))])
    first, second = read_dataset(data).images
    table = scan_images(data, [second], max_pixels=100_000_000, workers=1, others={first["file_name"]})
    assert table["image_id"].tolist() == [2]
    assert not caplog.records


def test_unusual_images_are_sound(make_dataset: Make, photo: Photo) -> None:
    picture = Image.open(BytesIO(photo(0)))
    contents = [
        save(picture.convert("CMYK"), "JPEG"),
        save(Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20), "PNG"),
        save(picture.convert("P"), "GIF", save_all=True, append_images=[picture.rotate(9), picture.rotate(18)]),
        save(picture.convert("L"), "PNG"),
    ]
    table = scan(make_dataset([("train", content) for content in contents]))
    assert table["damage"].isna().all()
    assert table["mode"].tolist() == ["CMYK", "I;16", "P", "L"]


def test_sizes_are_those_of_the_upright_picture(make_dataset: Make, photo: Photo) -> None:
    table = scan(make_dataset([("train", rotated(photo))]))
    assert (table["width"][0], table["height"][0]) == (48, 64)


def test_a_file_that_is_not_the_imported_one_is_damage(make_dataset: Make, photo: Photo) -> None:
    def record(dataset: Any) -> None:
        dataset.images[0]["sha256"] = hashlib.sha256(photo(0)).hexdigest()
        dataset.images[1]["sha256"] = "0" * 64

    table = scan(make_dataset([("train", photo(0)), ("train", photo(1))], change=record))
    assert pd.isna(table["damage"][0])
    assert "SHA-256" in table["damage"][1]


def test_a_split_that_is_no_text_counts_as_none(make_dataset: Make, photo: Photo) -> None:
    data = make_dataset([("train", photo(0))], change=lambda dataset: dataset.images[0].update(split=3))
    assert pd.isna(scan(data)["split"][0])


def test_names_that_no_file_can_hold_are_made_so_that_one_can(make_dataset: Make, photo: Photo) -> None:
    data = make_dataset([("MARK", photo(0))])
    path = data / "captions.json"
    path.write_text(path.read_text().replace("MARK", "\\ud800"))
    assert scan(data)["split"][0] == "?"


def test_members_without_a_record_are_mentioned(
    make_dataset: Make, photo: Photo, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        scan(make_dataset([("train", photo(0)), ("train", photo(1))], change=lambda dataset: dataset.images.pop()))
    assert "1 image" in caplog.text


def test_a_damaged_shard_is_named(make_dataset: Make, photo: Photo) -> None:
    data = make_dataset([("train", photo(0))])
    shard = data / "images-00000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DiptychError, match=r"images-00000\.tar"):
        scan(data)
